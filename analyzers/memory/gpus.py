"""The GPUs people have: how much memory their driver reports, and how much of it a training process can use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from analyzers.units import GIB, MIB
from loraxs_core.errors import SettingsError

# What CUDA, its libraries and the kernels' code take outside of PyTorch's allocator: 107 MiB (bare, RTX 4060 Ti; llama.cpp
# #23604) to 616 MiB (server GPU; LMCache #4019); V100 under CUDA 11.2, before lazy loading, 1,343 MiB (transformers' docs).
CONTEXT = (107 * MIB, 616 * MIB)


@dataclass(frozen=True)
class Gpu:
    """A GPU. memory: bytes that the driver reports. gigabytes: the number in its name. source: who saw the driver report it;
    empty for a size of the user's own. An entry for two cards has the memory of the smaller one."""

    name: str
    memory: int
    gigabytes: float
    source: str = ""

    @property
    def bytes(self) -> int:
        """What PyTorch's allocator can be sure to get: the memory less the largest usual CUDA context."""
        return self.memory - CONTEXT[1]


def _catalogue() -> tuple[Gpu, ...]:
    entries = json.loads((Path(__file__).parent / "gpus.json").read_text(encoding="utf-8"))
    return tuple(Gpu(entry["name"], entry["mib"] * MIB, entry["gigabytes"], entry["source"]) for entry in entries)


GPUS = _catalogue()


def find_gpu(wanted: str | float) -> Gpu:
    """A GPU of any size in GB (1 to 1000), or one of the catalogue by part of its name. Raises SettingsError for neither."""
    try:
        size = float(wanted)
    except (TypeError, ValueError):
        size = 0.0
    if 1 <= size <= 1000:
        # The GB of a card's name are GiB, less what the driver keeps.
        return Gpu(f"{size:g} GB", round(size * GIB * 0.99), size)
    for gpu in GPUS:
        if len(str(wanted).strip()) > 1 and str(wanted).strip().lower() in gpu.name.lower():
            return gpu
    raise SettingsError(
        f"No GPU is called {str(wanted)!r}; give its memory in GB (1 to 1000) or one of {', '.join(gpu.name for gpu in GPUS)}."
    )
