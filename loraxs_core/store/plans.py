"""What the adapters of one base and plan have in common, kept once: configuration, names and shapes, the proof of the bases.

An adapter is its row, all of its own numbers one after the other, and a plan that says what they are. The proof in an adapter's file
(`loraxs_core.proof`) is the same for all of them up to checksums of R, which follow from R: the plan has it with zeros there. Tensors
that belong to the base (copies of an embedding, A and B where they were saved) are kept apart, by checksum, once for the store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_128_hexdigest

from loraxs_core.adapter_names import PREFIX
from loraxs_core.store import templates

if TYPE_CHECKING:
    import torch

_R, _PROOF = ".loraxs_R", ".loraxs_proof"
_SHARED = (".base_layer.", ".loraxs_A", ".loraxs_B")  # of the base, not of the adapter
# What PEFT writes into every adapter_config.json in an order that changes from run to run.
_SETS = ("target_modules", "exclude_modules", "modules_to_save")


@dataclass(frozen=True)
class Part:
    """A tensor of a row. key: in the adapter's file. dtype: as torch calls it. start, stop: its bytes in the row."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def module(self) -> str | None:
        """The module whose R this is; None for a tensor of a module saved whole."""
        return self.key.removeprefix(PREFIX).removesuffix(_R) if self.key.endswith(_R) else None


@dataclass(frozen=True)
class Plan:
    """What the adapters of one base and plan have in common.

    config: adapter_config.json. layout: (key, dtype, shape) of the tensors of a row, in the order of their bytes. shared: (key, dtype,
    shape, checksum) of the tensors that are kept apart. proof_key: of the proof in the file, None where the proof is part of the row (one that this version
    does not make). template: the proof with zeros for all that depends on R.
    """

    config: dict
    layout: tuple[tuple[str, str, tuple[int, ...]], ...]
    shared: tuple[tuple[str, str, tuple[int, ...], str], ...]
    proof_key: str | None
    template: bytes

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Where every tensor lies in a row."""
        found, at = [], 0
        for key, dtype, shape in self.layout:
            size = int(np.prod(shape, dtype=np.int64)) * _bytes_of(dtype)
            found.append(Part(key, dtype, shape, at, at + size))
            at += size
        return tuple(found)

    @cached_property
    def row_bytes(self) -> int:
        return self.parts[-1].stop

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Module name -> rank."""
        return {part.module: part.shape[0] for part in self.parts if part.module is not None}

    @cached_property
    def base(self) -> str:
        """Digest of the base's weights as the proof knows them: equal for two plans of one base on the same modules; empty without a proof."""
        if not self.proof_key:
            return ""
        return xxh3_128_hexdigest(b"".join(templates.identities(self.template, self.ranks)))

    def tensors(self, row: bytes | bytearray | memoryview, shared: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
        """What the adapter's file holds, byte for byte. The numbers of `row` are used where they are, not copied. shared: checksum -> bytes."""
        found = self.numbers(row)
        for key, dtype, shape, digest in self.shared:
            found[key] = _tensor(bytearray(shared[digest]), dtype, shape)
        if self.proof_key:
            found[self.proof_key] = templates.filled(self.template, self.ranks, _of_modules(found), self._whole(found))
        return found

    def numbers(self, row: bytes | bytearray | memoryview) -> dict[str, torch.Tensor]:
        """The tensors of the row alone."""
        view = memoryview(row)
        found = {}
        for part in self.parts:
            raw: bytearray | memoryview = view[part.start : part.stop]
            if part.start % _bytes_of(part.dtype):
                raw = bytearray(raw)  # numbers have to stand at multiples of their own size
            found[part.key] = _tensor(raw, part.dtype, part.shape)
        return found

    def row(self, tensors: Mapping[str, torch.Tensor]) -> bytes:
        """The row of an adapter with these tensors."""
        return b"".join(_raw(tensors[key]) for key, _, _ in self.layout)

    def _whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of modules saved whole, by name."""
        return {part.key.removeprefix(PREFIX): tensors[part.key] for part in self.parts if part.module is None}

    @cached_property
    def template_digest(self) -> str:
        return xxh3_128_hexdigest(self.template)

    def to_json(self) -> str:
        """Canonical, without the template: that is kept by its checksum, `template_checksum`."""
        said = {
            "config": self.config,
            "layout": self.layout,
            "shared": self.shared,
            "proof_key": self.proof_key,
            "template": self.template_digest,
        }
        return json.dumps(said, sort_keys=True, ensure_ascii=False)


def planned(config: Mapping, tensors: Mapping[str, torch.Tensor]) -> tuple[Plan, dict[str, bytes]]:
    """(the plan of an adapter's configuration and tensors, the bytes to be kept once by checksum, template included)."""
    blobs: dict[str, bytes] = {}
    layout, shared, proof_key = [], [], None
    for key in sorted(tensors):
        dtype, shape = str(tensors[key].dtype).removeprefix("torch."), tuple(tensors[key].shape)
        if key.endswith(_PROOF):
            proof_key = key
        elif any(mark in key for mark in _SHARED):
            digest = xxh3_128_hexdigest(raw := _raw(tensors[key]))
            blobs[digest] = raw
            shared.append((key, dtype, shape, digest))
        else:
            layout.append((key, dtype, shape))
    said = {key: sorted(value) if key in _SETS and isinstance(value, list) else value for key, value in config.items()}
    cores = _of_modules(tensors)
    ranks = {name: len(core) for name, core in cores.items()}
    template = templates.emptied(tensors[proof_key], ranks) if proof_key else b""
    plan = Plan(said, tuple(layout), tuple(shared), proof_key, template)
    row = plan.row(tensors)
    if proof_key and (not template or _raw(plan.tensors(bytearray(row), blobs)[proof_key]) != _raw(tensors[proof_key])):
        # A proof of another make: it is kept as it is, with every adapter.
        layout = sorted(
            [*layout, (proof_key, str(tensors[proof_key].dtype).removeprefix("torch."), tuple(tensors[proof_key].shape))]
        )
        plan = Plan(said, tuple(layout), tuple(shared), None, b"")
    blobs[plan.template_digest] = plan.template
    return plan, blobs


def of_json(text: str | bytes, template: bytes) -> Plan:
    said = json.loads(text)
    layout = tuple((key, dtype, tuple(shape)) for key, dtype, shape in said["layout"])
    shared = tuple((key, dtype, tuple(shape), digest) for key, dtype, shape, digest in said["shared"])
    return Plan(said["config"], layout, shared, said["proof_key"], template)


def template_checksum(text: str | bytes) -> str:
    return json.loads(text)["template"]


def _of_modules(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Module name -> R."""
    return {key.removeprefix(PREFIX).removesuffix(_R): one for key, one in tensors.items() if key.endswith(_R)}


def _bytes_of(dtype: str) -> int:
    import torch

    return getattr(torch, dtype).itemsize


def _raw(tensor: torch.Tensor) -> bytes:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(raw: bytearray | memoryview, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    if not len(raw):
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(raw, dtype=getattr(torch, dtype)).reshape(shape)
