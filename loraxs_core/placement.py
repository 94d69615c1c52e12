"""Where the tensors of a file go when transformers loads them: renamed, taken apart, put together, or left out.

transformers' own conversion mapping of the installed version is asked, key by key and in the order its loader asks it
(``core_model_loading.convert_and_load_state_dict_in_model``); no table of architectures is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from loraxs_core.errors import CheckpointError, one_line
from loraxs_core.strips import StoredTensor, Strips

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


def renaming(model: PreTrainedModel) -> Callable[[str], tuple[str, str | None, WeightConverter | None]]:
    """For a tensor of a file: (the parameter of `model` that it goes to, and where more is done than renaming it, the pattern of
    transformers' converter that it met and that converter). Tensors are asked for in the order of their names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    owner = {pattern: one for one in converters for pattern in one.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix

    def ask(key: str) -> tuple[str, str | None, WeightConverter | None]:
        parameter, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if parameter not in state and key in state:
            parameter, pattern = rename_source_key(key, [], [], prefix, state)
        return parameter, pattern, owner[pattern] if pattern is not None else None

    return ask


@dataclass(frozen=True)
class Source:
    """What a matrix in memory is made of. first: the first tensor of the file that goes into it. index: which of the results it
    is, where a tensor is taken apart."""

    first: str
    index: int = 0


@dataclass
class _Group:
    """Tensors that one of transformers' converters takes together. collected: (its pattern, tensor of the file)."""

    parameter: str
    converter: WeightConverter
    collected: list[tuple[str, str]]


class Placement:
    """The tensors of a file in a model of one class.

    sources: parameter in memory -> where it comes from. by_tensor: tensor of the file -> the parameter it is, under another name
    or none. becomes: tensor -> the matrices of modules that it is converted to, or is a part of. left_out: the file's tensors that
    this class has no place for. modules, embeddings, conv1d: paths in memory.
    """

    def __init__(self, model: PreTrainedModel, shapes: Mapping[str, Sequence[int] | None]):
        """model: on the meta device. shapes: of the file's tensors; None where a tensor is no matrix, as a stack of experts."""
        import torch
        from transformers.pytorch_utils import Conv1D

        self.model, self._shapes = model, shapes
        modules = dict(model.named_modules())
        self.modules = modules.keys()
        self.embeddings = {name for name, module in modules.items() if isinstance(module, torch.nn.Embedding)}
        self.conv1d = {name for name, module in modules.items() if isinstance(module, Conv1D)}
        linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
        self._adaptable = linear | self.embeddings | self.conv1d
        self.sources: dict[str, Source] = {}
        self.converted: dict[str, _Group] = {}
        self.left_out: list[str] = []
        self.by_tensor: dict[str, str] = {}
        self.becomes: dict[str, list[str]] = {}
        self._place()

    def _place(self) -> None:
        from transformers.core_model_loading import dot_natural_key

        ask, state = renaming(self.model), self.model.state_dict()
        groups: dict[str, _Group] = {}
        for key in sorted(self._shapes, key=dot_natural_key):
            parameter, pattern, converter = ask(key)
            if parameter not in state:
                self.left_out.append(key)
            elif converter is None:
                self.sources[parameter] = Source(key)
                self.by_tensor[key] = parameter
            else:
                group = groups.setdefault(parameter, _Group(parameter, converter, []))
                group.collected.append((pattern, key))
        for group in groups.values():
            self._open(group)

    def _open(self, group: _Group) -> None:
        """Finds out what a group becomes. Only matrices of modules matter here: experts are parameters of their own in memory."""
        first, *_ = targets = group.converter.target_patterns
        candidates = [group.parameter.replace(first, target) for target in targets]
        if not any(_module_of(name) in self._adaptable for name in candidates) or any(
            self._shapes[key] is None for _, key in group.collected
        ):
            return
        try:
            results = self.results(group, {key: _meta(self._shapes[key]) for _, key in group.collected})
        except Exception:  # an operation of transformers' on tensors it was not made for; its loader leaves the parameter out
            self.left_out.extend(key for _, key in group.collected)
            return
        for index, name in enumerate(results):
            self.sources[name] = Source(group.collected[0][1], index)
            self.converted[name] = group
        for _, key in group.collected:
            self.becomes[key] = list(results)

    def results(self, group: _Group, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameter -> tensor: what transformers makes of the tensors of a group."""
        converter = deepcopy(group.converter)
        for pattern, key in group.collected:
            future: Future = Future()
            future.set_result(tensors[key])
            converter.add_tensor(group.parameter, key, pattern, future)
        found = converter.convert(group.parameter, model=self.model, config=self.model.config)
        return {name: one[0] if isinstance(one, list) else one for name, one in found.items()}

    @cached_property
    def made(self) -> set[str]:
        """The paths of the modules whose matrices are converted from what is in the file."""
        return {_module_of(parameter) for parameter in self.converted}

    @cached_property
    def paths(self) -> dict[Source, str]:
        """Where each source's matrix is: the path of its module. Parameters that are no module's ``weight`` are left out."""
        return {
            source: _module_of(parameter)
            for parameter, source in self.sources.items()
            if parameter.endswith(".weight") and _module_of(parameter) in self.modules
        }

    @cached_property
    def shapes_in_memory(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, in memory."""
        return {name: tuple(one.shape) for name, one in self.model.state_dict(keep_vars=True).items()}


class ConvertedTensor:
    """A matrix as transformers makes it of one or several tensors of the file. Held whole as long as its strips live."""

    out_first = None

    def __init__(self, placement: Placement, parameter: str, tensors: Mapping[str, StoredTensor]):
        self._placement, self.parameter = placement, parameter
        self._group = placement.converted[parameter]
        self._stored = {key: tensors[key] for _, key in self._group.collected}
        first = next(iter(self._stored.values()))
        self.file, self.entry, self.dtype = first.file, first.entry, first.dtype
        self.sources = tuple(dict.fromkeys(file for one in self._stored.values() for file in one.sources))
        self.shape = placement.shapes_in_memory[parameter]

    def matrix(self, expert: int | None) -> Strips:
        import torch

        numbers = {key: torch.from_numpy(np.ascontiguousarray(_whole(one))) for key, one in self._stored.items()}
        try:
            found = self._placement.results(self._group, numbers)[self.parameter]
        except Exception as error:
            raise CheckpointError(
                f"transformers cannot make {self.parameter} of {', '.join(numbers)}: {one_line(error)}."
            ) from error
        return _Held(found.numpy())


class _Held:
    """A matrix in memory."""

    def __init__(self, numbers: np.ndarray):
        self.numbers, self.shape = numbers, numbers.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.numbers[start:stop]

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.numbers[:, start:stop]


def _whole(tensor: StoredTensor) -> np.ndarray:
    if len(tensor.shape) == 3:
        return np.stack([tensor.matrix(index).rows(0, tensor.shape[1]) for index in range(tensor.shape[0])])
    return tensor.matrix(None).rows(0, tensor.shape[0])


def _meta(shape: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.empty(tuple(shape), device="meta")


def _module_of(parameter: str) -> str:
    return parameter.removesuffix(".weight")
