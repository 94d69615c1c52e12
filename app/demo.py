"""The main job from end to end on the sample model, as `loraxs demo` runs it: scan, plan, size and memory, compare, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzers.compare import SweepSettings, run_sweep
from analyzers.memory import MemoryEstimate, MemorySettings, estimate_memory
from analyzers.methods import MAIN_METHODS, METHODS
from analyzers.plans import RankPlan
from analyzers.ranks import Budget, make_plan
from analyzers.spectra import scan
from analyzers.storage import AdapterSize, adapter_size
from app import demo_report
from app.demo_result import LIKE_RANK, DemoResult
from app.tables import write_table
from loraxs_core.errors import RunError, WorkbenchError
from loraxs_core.names import refuse_name
from loraxs_core.paths import user_path
from loraxs_core.progress import Progress, ProgressCallback
from sample_models import open_model

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint

# 60 steps of 32 pairs put LoRA above the head-only control on STS-B and keep the demo within minutes on two cores.
STEPS, BATCH, SEQUENCE = 60, 32, 128
COMPARED = ("head-only", *MAIN_METHODS)
# Shares of the demo's time on two cores, for its progress bar.
STAGES = {"fetch": 0.02, "scan": 0.02, "plan": 0.01, "cost": 0.06, "compare": 0.87, "report": 0.02}


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How much of the demo is run; the tests make it short. As in `analyzers.compare.SweepSettings`."""

    model: str = "minilm"
    task: str = "stsb"
    steps: int = STEPS
    batch: int = BATCH
    validation_examples: int = 128
    test_examples: int | None = None
    threads: int | None = None


def run_demo(out: str | Path, progress: ProgressCallback | None = None, *, force: bool = False, **changes: Any) -> DemoResult:
    """Runs the demo and writes its files to `out`; a folder where it was interrupted is continued. force: a finished one, too.

    changes: fields of `DemoSettings`. Raises WorkbenchError in one sentence for whatever stops it, RunError for a folder that holds
    something else.
    """
    asked = DemoSettings(**changes)
    started = time.monotonic()
    stage = _Stages(progress)
    folder = _own_folder(out, force)
    checkpoint = open_model(asked.model, progress=stage("fetch"))
    spectra = scan(checkpoint, progress=stage("scan"))
    stage("plan")(Progress(0, 1, "planning ranks"))
    plan = make_plan(checkpoint, "role", budget=Budget.like_rank(LIKE_RANK), spectra=spectra)
    _refuse_other_plan(folder / "plan.json", plan, force)
    plan.save(folder / "plan.json")
    write_table(spectra.frame(plan), folder / "layers.csv", force=True)
    sizes, memory = _cost(checkpoint, plan, asked.batch, stage("cost"))
    resumed = any((folder / "run").glob("trials/*/result.json"))
    run = run_sweep(_sweep(asked, plan), folder / "run", progress=stage("compare"))
    write_table(run.results(), folder / "trials.csv", force=True)
    stage("report")(Progress(0, 1, "writing the report"))
    result = DemoResult(
        folder, checkpoint, spectra, plan, sizes, memory, run, run.summary(), time.monotonic() - started, resumed
    )
    demo_report.write(result)
    stage("report")(Progress(1, 1, "done"))
    return result


def _own_folder(out: str | Path, force: bool) -> Path:
    """The demo's folder. Raises RunError when it holds something else, or a finished demo that is not to be written over."""
    folder = user_path(out).resolve()
    refuse_name(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "plan.json").is_file())):
        raise RunError(f"{folder} is not empty and holds no demo; choose another folder with --out.")
    if (folder / "report.html").exists() and not force:
        raise RunError(f"{folder} holds a finished demo; choose another folder, or write its files anew with --force.")
    return folder


def _cost(
    checkpoint: Checkpoint, plan: RankPlan, batch: int, tell: ProgressCallback
) -> tuple[dict[str, AdapterSize], dict[str, MemoryEstimate]]:
    """(size on disk, memory of training) of the main methods; LoRA-XS by the plan, the others at their own ranks."""
    sizes, memory = {}, {}
    for index, name in enumerate(MAIN_METHODS):
        tell(Progress(index, len(MAIN_METHODS), f"size and memory of {METHODS[name].label}"))
        ranks: dict[str, Any] = {"plan": plan} if name == "lora-xs" else {}
        sizes[name] = adapter_size(checkpoint, name, **ranks)
        settings = MemorySettings(method=name, batch=batch, sequence=SEQUENCE, base_dtype="fp32", **ranks)
        memory[name] = estimate_memory(checkpoint, settings)
    return sizes, memory


def _sweep(asked: DemoSettings, plan: RankPlan) -> SweepSettings:
    return SweepSettings(
        asked.model,
        asked.task,
        COMPARED,
        steps=asked.steps,
        batch=asked.batch,
        sequence=SEQUENCE,
        plans={"role plan": plan},
        evaluations=4,
        validation_examples=asked.validation_examples,
        test_examples=asked.test_examples,
        threads=asked.threads,
    )


def _refuse_other_plan(file: Path, plan: RankPlan, force: bool) -> None:
    """Raises RunError when `file` is a plan that this demo would not have written: it is somebody's own."""
    if file.exists() and not force:
        try:
            known = RankPlan.load(file).to_dict()
        except WorkbenchError:
            known = None
        if known != plan.to_dict():
            raise RunError(f"{file} is another plan than the demo's; choose another folder, or overwrite it with --force.")


class _Stages:
    """One progress bar over all stages."""

    def __init__(self, progress: ProgressCallback | None):
        self.progress = progress
        self.started = time.monotonic()

    def __call__(self, name: str) -> ProgressCallback:
        names = list(STAGES)
        before = sum(STAGES[earlier] for earlier in names[: names.index(name)])

        def tell(progress: Progress) -> None:
            if self.progress:
                self.progress(Progress(before + STAGES[name] * progress.fraction, 1.0, progress.message, self.started))

        return tell
