"""Measuring a task's signals for ranks: a frozen base, a head trained alone first, R at 0, a few dozen batches read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from analyzers.checks import whole
from analyzers.compare.base_and_head import Prepared, prepare
from analyzers.compare.calibration import PARTS, activation_curves, gradient_curves, warm_up_curves
from analyzers.compare.causal import answers_alone
from analyzers.compare.examples import TrialExamples
from analyzers.compare.tasks import CAUSAL, open_task
from analyzers.compare.trial_settings import TrialSettings
from analyzers.methods import METHODS, adapter_config
from analyzers.plans import RankPlan
from analyzers.ranks import Budget, make_plan
from analyzers.ranks.signals import Signals
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError
from loraxs_core.progress import Progress, ProgressCallback
from loraxs_core.targets import select_targets

STAGES = ("reading gradients", "a short warm-up", "reading activations")  # each reads all batches once


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """task, data, columns, targets, batch, sequence: as in `SweepSettings`. top: the largest rank measured; a plan with bounded spread needs twice
    its uniform rank. batches: read for the signals; head_steps: for which the head is trained alone first, because what an
    untrained head asks for is another plan. seed: of the data order and the head.

    Raises SettingsError for values that cannot be.
    """

    task: str = "stsb"
    top: int = 32
    batches: int = 24
    head_steps: int = 100
    batch: int = 16
    sequence: int = 128
    targets: str | Sequence[str] = "paper"
    seed: int = 0
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("top", "batches", "batch", "sequence"):
            whole(getattr(self, name), f"The number of {name}" if name == "batches" else f"The {name}")
        if self.batches < PARTS:
            raise SettingsError(f"At least {PARTS} batches are needed: the signals are compared between halves of the data.")


def measure_signals(checkpoint: Checkpoint, settings: MeasureSettings, progress: ProgressCallback | None = None) -> Signals:
    """Every kind of `analyzers.ranks.signals.KINDS` for the targets of `checkpoint` on a task.

    No example is read twice, as halves of the data that share examples agree by that alone: of a small training split fewer batches are read.

    Raises SettingsError for a task that cannot be read or has too few examples, CheckpointError for a model that cannot be loaded, WeightsMissing for one
    without weights.
    """
    task = open_task(settings.task, dict(settings.columns))
    prepared = prepare(checkpoint, task, settings.seed)
    examples = TrialExamples.of(task.read(settings.data, None), task, _as_trial(settings), prepared)
    fresh = _fresh(examples.order)
    if fresh < PARTS:
        raise SettingsError(
            f"{task.label} trains on {fresh * len(examples.order[0])} examples, which make {fresh} batches of {len(examples.order[0])}; at least "
            f"{PARTS} are needed, as halves of the data are compared. Take a smaller batch, or more data."
        )
    collated = [examples.collate([examples.train[index] for index in batch]) for batch in examples.order]
    if task.kind == CAUSAL:
        collated = [answers_alone(batch, prepared.model) for batch in collated]

    heads = collated[: settings.head_steps] if prepared.head else []
    read = collated[: min(settings.batches, fresh)]
    ticks = _Ticks(progress, len(heads) + len(STAGES) * len(read))

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        ticks.advance()
        found = prepared.model(**batch)
        return found["loss"]

    def forward(batch: dict[str, Any]) -> None:
        ticks.advance()
        prepared.model(**batch)

    prepared.model.eval()
    ticks.message = "training the head alone"
    if heads:
        _train_head(prepared, loss, heads)
    largest = _largest(checkpoint, settings)
    layers = _adapted(prepared, largest, settings.seed)
    matrices = {name: layer.loraxs_R["default"] for name, layer in layers.items()}
    for matrix in matrices.values():
        matrix.data.zero_()
    ticks.message = STAGES[0]
    curves = gradient_curves(loss, matrices, read)
    ticks.message = STAGES[1]
    curves["warm-up"] = warm_up_curves(loss, matrices, read, METHODS["lora-xs"].rate(task.kind == CAUSAL).value)
    ticks.message = STAGES[2]
    curves["activation"] = activation_curves(forward, layers, read, largest.most_frequent_rank)
    return Signals(checkpoint.name, settings.task, len(read), curves)


def _fresh(order: Sequence[Sequence[int]]) -> int:
    """How many batches of `order` come before an example comes again."""
    seen: set[int] = set()
    for number, batch in enumerate(order):
        if not seen.isdisjoint(batch):
            return number
        seen.update(batch)
    return len(order)


class _Ticks:
    """Progress by batches read. message: what they are read for."""

    def __init__(self, progress: ProgressCallback | None, total: int):
        self.progress, self.total, self.done, self.message = progress, total, 0, ""
        self.began = time.monotonic()

    def advance(self) -> None:
        if self.progress is not None:
            self.progress(Progress(self.done, self.total, self.message, self.began))
        self.done += 1


def _as_trial(settings: MeasureSettings) -> TrialSettings:
    """What a trial of the head alone would read: its batches are those that are measured."""
    steps, rate = max(settings.batches, settings.head_steps), METHODS["head-only"].learning_rate
    return TrialSettings(
        "head-only", settings.seed, rate, rate, steps, settings.batch, settings.sequence, validation_examples=1, test_examples=1
    )


def _largest(checkpoint: Checkpoint, settings: MeasureSettings) -> RankPlan:
    """The uniform plan of the largest rank, or of the smallest matrix's side where that is less."""
    smallest = min(weight.full_rank for weight in select_targets(checkpoint, settings.targets))
    return make_plan(checkpoint, "uniform", budget=Budget.like_rank(min(settings.top, smallest)), targets=settings.targets)


def _train_head(prepared: Prepared, loss: Any, collated: Sequence[dict[str, Any]]) -> None:
    parameters = [parameter for name in prepared.head for parameter in prepared.model.get_submodule(name).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=METHODS["head-only"].learning_rate, weight_decay=0.0)
    for number, batch in enumerate(collated):
        optimizer.param_groups[0]["lr"] = METHODS["head-only"].learning_rate * (1 - number / len(collated))
        optimizer.zero_grad(set_to_none=True)
        value = loss(batch)
        if not math.isfinite(float(value.detach())):
            raise SettingsError("The loss of the head alone is not a number; check the labels of the task.")
        value.backward()
        optimizer.step()


def _adapted(prepared: Prepared, plan: RankPlan, seed: int) -> dict[str, Any]:
    """Puts `plan` on the model; layer name -> the tuner's module."""
    from peft import get_peft_model

    config = adapter_config(plan.spec("lora-xs", task_type=prepared.task_type, modules_to_save=[], seed=seed))
    wrapped = get_peft_model(prepared.model.encoder if prepared.separate else prepared.model, config)
    if prepared.separate:
        prepared.model.encoder = wrapped
    wrapped.eval()
    found: dict[str, nn.Module] = {path: module for path, module in wrapped.named_modules() if hasattr(module, "loraxs_R")}
    ends = {name: f".{plan.modules.get(name, name)}" for name in plan.ranks}
    return {name: next(module for path, module in found.items() if f".{path}".endswith(end)) for name, end in ends.items()}
