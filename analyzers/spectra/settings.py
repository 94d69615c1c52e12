"""`ScanSettings`: how a checkpoint is scanned. What is computed is the same whatever engine and however many jobs compute it."""

from __future__ import annotations

from dataclasses import dataclass

from analyzers.spectra.accuracy import Accuracy
from loraxs_core.errors import SettingsError

ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """A scan that is asked for.

    parts: also the query, key and value (or gate and up) inside fused projections. fast: float32 arithmetic, within 1e-4. top: only
    this many values of each layer, the largest, in float32; the total energy stays exact. jobs: matrices at a time, one core each;
    the cores this process may use when None. device: ``cpu``, or an accelerator as PyTorch names it, such as ``cuda``. engine:
    ``local``, or ``ray`` for a Ray cluster that shares the file system. cache: read and write the user's cache, so that the second
    scan is instant and a killed one resumes.

    Raises SettingsError for values that make no sense, and for an engine that does not go with the device.
    """

    parts: bool = False
    fast: bool = False
    top: int | None = None
    jobs: int | None = None
    device: str = "cpu"
    engine: str = "local"
    cache: bool = True

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise SettingsError(f"jobs must be at least 1, not {self.jobs}.")
        if self.engine not in ENGINES:
            raise SettingsError(f"Unknown engine {self.engine!r}; there are {', '.join(ENGINES)}.")
        if self.engine == "ray" and self.device != "cpu":
            raise SettingsError("The ray engine scans on CPUs; leave the device out, or use the local engine.")
        self.accuracy  # noqa: B018  (which refuses a top below 1)

    @property
    def accuracy(self) -> Accuracy:
        """How exact its result is."""
        return Accuracy(self.fast, self.top)
