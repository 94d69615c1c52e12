"""What an engine is given."""

from __future__ import annotations

from dataclasses import dataclass

from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.layer import LayerSpectrum, NotFinite
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.dtypes import DTYPES
from loraxs_core.errors import CheckpointError, NonFiniteWeights
from loraxs_core.progress import Cancelled
from loraxs_core.safetensors_file import file_stamp, sampled_bytes
from loraxs_core.spectrum_kernels import spectrum

# Arithmetic done in the time that any matrix takes beside its own: opening its file, its metrics, its file in the cache (1 ms).
OVERHEAD = 2e7
TICK_SECONDS = 0.1  # how often progress is told and cancellation asked for
Result = LayerSpectrum | NotFinite
_ITEM_BYTES = {name: size for size, name in DTYPES.values()}  # quantised formats count as one byte a weight


@dataclass
class Task:
    """One weight to scan, and the fraction of its work that is done, kept up to date by the engine."""

    weight: Weight
    fraction: float = 0.0

    @property
    def cost(self) -> float:
        """Arithmetic it takes: n^2 m for the Gram matrix, its eigenvalues as long as 2 n^3 of that (measured), and `OVERHEAD`."""
        short, long = min(self.weight.shape), max(self.weight.shape)
        return float(short) ** 2 * (long + 2 * short) + OVERHEAD

    @property
    def nbytes(self) -> float:
        """Bytes it is stored in."""
        return self.weight.shape[0] * self.weight.shape[1] * _ITEM_BYTES.get(self.weight.dtype, 1)

    def run(self, checkpoint: Checkpoint, accuracy: Accuracy, cancelled: Cancelled | None = None) -> Result:
        """Computes the spectrum and its metrics on the CPU; `NotFinite` for NaN or infinities. Raises what else `spectrum` raises."""
        try:
            result = spectrum(
                checkpoint.strips(self.weight),
                fast=accuracy.fast,
                top=accuracy.top,
                name=self.weight.name,
                step=self.advance,
                cancelled=cancelled,
            )
        except NonFiniteWeights as error:
            return NotFinite(self.weight, str(error))
        return LayerSpectrum(self.weight, result.values, result.energy, result.error).measured()

    def advance(self, fraction: float) -> None:
        """Notes how much is done. The metrics that follow the last step are a small rest."""
        self.fraction = 0.99 * fraction


@dataclass
class Job:
    """A scan for an engine to run. tasks: largest first. jobs: how many at a time. device: as PyTorch names it."""

    checkpoint: Checkpoint
    tasks: list[Task]
    accuracy: Accuracy
    jobs: int
    device: str = "cpu"


def changed_file(checkpoint: Checkpoint, weight: Weight | None = None) -> str | None:
    """The name of a file (of one weight where that is known, or of all) that is not what it was when it was opened."""
    own = checkpoint.files.get(weight.tensor) if weight else None
    for file in [own] if own else {id(file): file for file in checkpoint.files.values()}.values():
        try:
            now = file_stamp(file.path.stat())
            # A change time alone also moves when a file gets another mode or link.
            changed = now[:3] != file.stamp[:3] or (now != file.stamp and sampled_bytes(file.path) != file.sample)
        except (OSError, CheckpointError):
            changed = True
        if changed:
            return file.path.name
    return None


def refuse_changed(checkpoint: Checkpoint, weight: Weight | None = None) -> None:
    """Raises CheckpointError when `changed_file` finds one."""
    name = changed_file(checkpoint, weight)
    if name:
        raise CheckpointError(f"{name} of {checkpoint.name} changed since it was opened; open the model again.")
