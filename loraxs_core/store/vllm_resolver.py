"""A fleet served by vLLM: an adapter of the store becomes an exact LoRA when a request first names it.

vLLM asks its resolvers for a LoRA that it does not know (``vllm.lora.resolver.LoRAResolver``; its documentation calls them LoRA resolver
plugins). This one is found through the entry point ``vllm.general_plugins`` and set by environment variables:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1  VLLM_PLUGINS=loraxs_store  LORAXS_STORE=fleet  LORAXS_STORE_BASE=path/to/base
    vllm serve path/to/base --enable-lora --max-lora-rank 16

A request names ``user-17``, or ``user-17@42`` for that version. vLLM remembers a name for as long as it runs: a newer version is served
under its own ``name@version`` until then.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError, StoreDamaged, StoreError
from loraxs_core.export import Frozen, export_lora
from loraxs_core.paths import user_path
from loraxs_core.store.folders import write_folder
from loraxs_core.store.store import AdapterStore
from loraxs_core.store.stored import StoredAdapter

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

NAME = "LoRA-XS store"
FIRST_ID = 1 << 30  # of the adapters from here; vLLM counts those it is started with from 1


class Expander:
    """Exact LoRAs of a store's adapters, in folders below `folder`. base: the model they were trained on.

    A and B are rebuilt and verified for the first adapter of a plan and kept; of the others only B R is computed.
    """

    def __init__(self, store: AdapterStore, base: Checkpoint, folder: Path):
        self.store, self.base, self.folder = store, base, folder
        self._frozen: dict[int, dict[str, Frozen]] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> StoredAdapter | None:
        """The adapter that a request calls `name`, or ``name@version``; None where the store has none.

        Raises StoreDamaged for one that is not what was put.
        """
        plain, _, number = name.rpartition("@")
        choices = [(name, None), (plain, int(number))] if plain and number.isascii() and number.isdecimal() else [(name, None)]
        for one, version in choices:
            try:
                return self.store.get(one, version)
            except StoreDamaged:
                raise
            except StoreError:
                continue
        return None

    def expanded(self, found: StoredAdapter) -> Path:
        """The folder of an adapter's LoRA, made when it is not there. Raises as `loraxs_core.export.export_lora`."""
        out = self.folder / f"{found.version.version}-{found.version.checksum.hex()[:8]}"
        with self._lock:
            if not out.is_dir():
                with tempfile.TemporaryDirectory() as temporary:
                    write_folder(Path(temporary), found)
                    export_lora(temporary, self.base, out, frozen=self._frozen.setdefault(found.version.plan, {}))
        return out


def register() -> None:
    """What vLLM calls in each of its processes: registers the resolver where ``LORAXS_STORE`` names a store.

    Raises SettingsError without ``LORAXS_STORE_BASE``, StoreError where there is no such store.
    """
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class StoreResolver(LoRAResolver):
        """vLLM's interface, on an `Expander`."""

        def __init__(self, expander: Expander):
            self.expander = expander

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            """The request for `lora_name`, whose folder holds the exact LoRA; None where the store has no such adapter.

            base_model_name: what vLLM serves; whether the adapter belongs to the base is proved by its weights, not by this name.
            """
            found = await asyncio.to_thread(self.expander.find, lora_name)
            if found is None:
                return None
            path = await asyncio.to_thread(self.expander.expanded, found)
            return LoRARequest(lora_name=lora_name, lora_int_id=FIRST_ID + found.version.version, lora_path=str(path))

    folder = os.environ.get("LORAXS_STORE")
    if not folder:
        return
    base = os.environ.get("LORAXS_STORE_BASE")
    if not base:
        raise SettingsError("LORAXS_STORE names a store and LORAXS_STORE_BASE no base model; name the folder that vLLM serves.")
    _loras.append(tempfile.TemporaryDirectory(prefix="loraxs-loras-"))
    expander = Expander(AdapterStore(folder), Checkpoint.open(user_path(base)), Path(_loras[-1].name))
    LoRAResolverRegistry.register_resolver(NAME, StoreResolver(expander))


_loras: list[tempfile.TemporaryDirectory] = []  # vLLM reads a LoRA again when it has lost it; they go with the process
