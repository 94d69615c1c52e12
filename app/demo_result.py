"""What `loraxs demo` found, as its report reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.plans.settings import AS_RANK_16

if TYPE_CHECKING:
    import pandas as pd

    from analyzers.compare import RunFolder
    from analyzers.memory import MemoryEstimate
    from analyzers.plans import RankPlan
    from analyzers.spectra import Spectra
    from analyzers.storage import AdapterSize
    from loraxs_core.checkpoint import Checkpoint

LIKE_RANK = AS_RANK_16.value  # the plan's budget: as many trained numbers as this rank everywhere


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo found. folder holds report.html, layers.csv, plan.json, trials.csv and the run. summary: one row a
    method (`RunFolder.summary`). seconds: of this call. resumed: some trials had been finished by an earlier one."""

    folder: Path
    checkpoint: Checkpoint
    spectra: Spectra
    plan: RankPlan
    sizes: dict[str, AdapterSize]
    memory: dict[str, MemoryEstimate]
    run: RunFolder
    summary: pd.DataFrame
    seconds: float
    resumed: bool

    @property
    def report(self) -> Path:
        return self.folder / "report.html"
