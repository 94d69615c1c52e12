"""What an operator returns on the meta device, remembered: the same shapes in give the same shapes out.

PyTorch works out the result of most operators on meta in Python, which is nearly all the time of a trace, and a model asks the
same questions in every layer and step. Only operators that neither change nor return their inputs are remembered, and only
results that an empty tensor of the same sizes, strides and dtype reproduces to the byte; everything else is run each time.
"""

from __future__ import annotations

import torch

_UNKNOWN = object()
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
MOST = 50_000  # entries; a process that asks about ever new shapes starts afresh then

_results: dict[tuple, tuple] = {}
_pure: dict[object, bool] = {}


def run(func, args: tuple, kwargs: dict):
    """`func` of its arguments, from memory where that gives the same. To be called where no dispatch mode is active."""
    if not _is_pure(func):
        return func(*args, **kwargs)
    try:
        key = (func, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items()))
    except _NotPlain:
        return func(*args, **kwargs)
    known = _results.get(key, _UNKNOWN)
    if known is _UNKNOWN:
        result = func(*args, **kwargs)
        if len(_results) >= MOST:
            _results.clear()
        _results[key] = _recipe(result, _storages((args, kwargs)))
        return result
    return func(*args, **kwargs) if known is None else _made(known)


class _NotPlain(Exception):
    """An argument whose value cannot be told from its type and size."""


def _is_pure(func) -> bool:
    """Whether the operator's schema says that it writes to nothing and returns no view."""
    known = _pure.get(func)
    if known is None:
        schema = func._schema
        known = _pure[func] = all(one.alias_info is None for one in (*schema.arguments, *schema.returns))
    return known


def _key(value):
    """What an argument is to an operator on meta; numbers with their type, since 1 and 1.0 promote differently."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta or value.dtype.is_complex:
            raise _NotPlain
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return value.__class__, *map(_key, value)
    if isinstance(value, _PLAIN):
        return value.__class__, value
    raise _NotPlain


def _recipe(result, inputs: set[int]) -> tuple | None:
    """How to make `result` again; None when it holds more than new, plain meta tensors."""
    if isinstance(result, torch.Tensor):
        return _tensor(result, inputs)
    if isinstance(result, (list, tuple)):
        parts = [_tensor(one, inputs) if isinstance(one, torch.Tensor) else None for one in result]
        distinct = len({one.untyped_storage()._cdata for one in result if isinstance(one, torch.Tensor)}) == len(parts)
        return (result.__class__, parts) if parts and distinct and all(parts) else None
    return None


def _tensor(result: torch.Tensor, inputs: set[int]) -> tuple | None:
    storage = result.untyped_storage()
    if not result.is_meta or type(result) is not torch.Tensor or storage._cdata in inputs or result.storage_offset():
        return None
    recipe = result.shape, result.stride(), result.dtype
    return recipe if _empty(recipe).untyped_storage().nbytes() == storage.nbytes() else None


def _made(recipe: tuple):
    if isinstance(recipe[1], list):
        return recipe[0](map(_empty, recipe[1]))
    return _empty(recipe)


def _empty(recipe: tuple) -> torch.Tensor:
    size, stride, dtype = recipe
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _storages(value) -> set[int]:
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage()._cdata}
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return set()
    return set().union(*map(_storages, value))
