"""A model that serves a whole store: the adapters in use are resident, the others a read away.

PEFT knows a fixed number of *slots*, adapters of its own named ``store-0``, ``store-1``, …; an adapter of the store is put into one when a
batch first names it. A slot's bases were proved when it was made, and are the same for all adapters of its plan: another one of them in the
slot is a checksum and a copy of its R.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import PreTrainedModel

from loraxs_core.errors import SettingsError, StoreError
from loraxs_core.store.plans import Plan
from loraxs_core.store.records import Version
from loraxs_core.store.stored import StoredAdapter
from loraxs_core.tuner import LoraXSConfig, LoraXSLayer

BASE = "__base__"  # PEFT's name for no adapter


class Source(Protocol):
    """What is served from: an `loraxs_core.store.AdapterStore`."""

    def newest(self, name: str) -> Version: ...

    def get(self, name: str, version: int | None = None) -> StoredAdapter: ...


@dataclass
class _Slot:
    """An adapter of PEFT's. name: PEFT's. plan: number in the store. cores: its R by module, to be written in place."""

    name: str
    plan: int
    cores: dict[str, torch.Tensor]


class Served:
    """`model` with a store behind it, in evaluation mode.

        served = store.attach(model, resident=64)
        served(**batch, adapters=["user-17", "__base__", "user-3"])

    An adapter is named for every row of the batch; its newest version is used, also one that was put a moment ago. Works with forward and
    generate. Raises SettingsError for fewer than one resident, for another number of names than rows (PEFT's ValueError) and for a batch of more adapters than
    may be resident; StoreError for a name that is not in the store; BasisMismatch for an adapter of another base.
    """

    def __init__(self, store: Source, model: PeftModel | PreTrainedModel, resident: int = 256):
        if resident < 1:
            raise SettingsError(f"At least 1 adapter has to stay resident, not {resident}.")
        self.store, self.model, self.most = store, model.eval(), resident
        self._held: OrderedDict[int, _Slot] = OrderedDict()  # version -> its slot, the one used longest ago first
        self._numbers = itertools.count()
        self._lock = threading.RLock()

    @property
    def resident(self) -> list[int]:
        """The versions that are in memory, the one used longest ago first."""
        return list(self._held)

    def __call__(self, *arguments: Any, adapters: Sequence[str], **named: Any) -> Any:
        """The model's forward, each row through its adapter."""
        with self._lock:
            slots = self.load(adapters)
            return self.model(*arguments, **named) if slots is None else self.model(*arguments, adapter_names=slots, **named)

    def generate(self, *arguments: Any, adapters: Sequence[str], **named: Any) -> Any:
        """The model's generate, each row through its adapter."""
        with self._lock:
            slots = self.load(adapters)
            if slots is not None:
                named["adapter_names"] = slots
            return self.model.generate(*arguments, **named)

    def load(self, adapters: Sequence[str]) -> list[str] | None:
        """Makes these adapters resident; PEFT's name of each, None while the model has no adapter and none is asked for."""
        if isinstance(adapters, str):
            raise SettingsError(f"Name an adapter for every row, as a list, not {adapters!r} alone.")
        with self._lock:
            wanted = {name: self.store.newest(name) for name in dict.fromkeys(adapters) if name != BASE}
            if len(wanted) > self.most:
                raise SettingsError(f"The batch names {len(wanted)} adapters and {self.most} stay resident; attach with more.")
            for version in wanted.values():
                if version.version in self._held:
                    self._held.move_to_end(version.version)
            busy = {version.version for version in wanted.values()}
            for version in wanted.values():
                if version.version not in self._held:
                    self._held[version.version] = self._filled(version, busy)
            if not isinstance(self.model, PeftModel):
                return None
            return [BASE if name == BASE else self._held[wanted[name].version].name for name in adapters]

    def _filled(self, version: Version, busy: set[int]) -> _Slot:
        """A slot with the numbers of `version` in it: one that may give way, or a new one."""
        found = self.store.get(version.name, version.version)
        gives_way = None
        if len(self._held) >= self.most:
            gives_way = next(number for number in self._held if number not in busy)
            slot = self._held[gives_way]
            if slot.plan == version.plan:
                del self._held[gives_way]  # first, as its numbers are those of neither while they are written
                self._write(slot, found)
                return slot
        fresh = self._new(version.plan, found)
        if gives_way is not None:  # after the new one is there, because PEFT's model cannot be without an adapter
            del self._held[gives_way]
            self.model.delete_adapter(slot.name)
        return fresh

    def _new(self, plan: int, found: StoredAdapter) -> _Slot:
        name = f"store-{next(self._numbers)}"
        config = LoraXSConfig(
            **{key: value for key, value in found.plan.config.items() if key in LoraXSConfig.__dataclass_fields__}
        )
        config.inference_mode = True
        first = not isinstance(self.model, PeftModel)
        if first:
            self.model = get_peft_model(self.model, config, adapter_name=name)
        else:
            self.model.add_adapter(name, config)
        try:
            layers = {
                layer.module_name: layer for layer in self.model.modules() if isinstance(layer, LoraXSLayer) and name in layer.r
            }
            slot = _Slot(name, plan, {module: layer.loraxs_R[name].data for module, layer in layers.items()})
            if layers.keys() != found.plan.ranks.keys():
                raise StoreError(
                    f"{found.version.label} adapts modules that this model does not have; it belongs to another one."
                )
            set_peft_model_state_dict(self.model, dict(found.tensors), name)  # which checks the proof
            if first:
                self.model.eval()  # not before: it asks for bases, and they may be among the tensors
        except BaseException:
            if first:
                self.model = self.model.unload()
            else:
                self.model.delete_adapter(name)
            raise
        return slot

    def _write(self, slot: _Slot, found: StoredAdapter) -> None:
        if not _is_all_cores(found.plan):
            set_peft_model_state_dict(self.model, dict(found.tensors), slot.name)
            return
        for module, core in found.cores.items():
            slot.cores[module].copy_(core)


def _is_all_cores(plan: Plan) -> bool:
    """Whether an adapter is its R and nothing else: no module saved whole."""
    return plan.proof_key is not None and not plan.shared and all(part.module is not None for part in plan.parts)
