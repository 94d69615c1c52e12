"""What an operator returns on the meta device, remembered: the same shapes in give the same shapes out.

PyTorch works out the result of most operators on meta in Python, which is nearly all the time of a trace, and a model asks the
same questions in every layer and step. Two kinds of operators are remembered; everything else is run each time. Of those that
neither change nor return their inputs, the results that an empty tensor of the same sizes, strides and dtype reproduces to the
byte. Of those that write numbers into the tensors of their first argument and return nothing (``_foreach_add_`` and its kin), that
they left these as they were: an optimizer's step is made of them, and asks about the same parameters whatever the batch.
"""

from __future__ import annotations

import torch

PURE, WRITES, OTHER = "pure", "writes", "other"
_UNKNOWN, _WRITTEN = object(), object()
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
MOST = 50_000  # entries; a process that asks about ever new shapes starts afresh then

_results: dict[tuple, tuple] = {}
_kinds: dict[object, str] = {}


def run(func, args: tuple, kwargs: dict):
    """`func` of its arguments, from memory where that gives the same. To be called where no dispatch mode is active."""
    kind = _kind(func)
    if kind == OTHER:
        return func(*args, **kwargs)
    try:
        key = (func, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items()))
    except _NotPlain:
        return func(*args, **kwargs)
    known = _results.get(key, _UNKNOWN)
    if known is _UNKNOWN:
        before = _looks(args[0]) if kind == WRITES else None
        result = func(*args, **kwargs)
        if len(_results) >= MOST:
            _results.clear()
        if kind == WRITES:
            _results[key] = _WRITTEN if before == _looks(args[0]) else None
        else:
            _results[key] = _recipe(result, _storages((args, kwargs)))
        return result
    if known is _WRITTEN:
        return None
    return func(*args, **kwargs) if known is None else _made(known)


class _NotPlain(Exception):
    """An argument whose value cannot be told from its type and size."""


def _kind(func) -> str:
    """What the operator's schema says: that it writes to nothing and returns no view (PURE), that it writes into its first
    argument alone and returns nothing (WRITES), or something else."""
    known = _kinds.get(func)
    if known is None:
        schema = func._schema
        arguments, returns = ([one.alias_info for one in side] for side in (schema.arguments, schema.returns))
        if not any((*arguments, *returns)):
            known = PURE
        elif arguments and arguments[0] and arguments[0].is_write and not any(arguments[1:]) and not returns:
            known = WRITES
        else:
            known = OTHER
        _kinds[func] = known
    return known


def _looks(value) -> list[tuple]:
    """All that memory depends on of a tensor, or of each of a list; an operator that gave one other memory would change this."""
    tensors = [value] if isinstance(value, torch.Tensor) else value
    return [
        (one.shape, one.stride(), one.storage_offset(), one.untyped_storage()._cdata, one.untyped_storage().nbytes())
        for one in tensors
    ]


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
