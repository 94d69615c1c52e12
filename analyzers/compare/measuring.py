"""Measuring a task's signals for ranks: a frozen base, a head trained alone first, R at 0, a few dozen batches read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analyzers.checks import whole
from analyzers.compare.base_and_head import Prepared, prepare
from analyzers.compare.calibration import PARTS, activation_curves, gradient_curves, warm_up_curves
from analyzers.compare.examples import Collator, Encoded, Scale, batches
from analyzers.compare.tasks import open_task
from analyzers.methods import METHODS, adapter_config
from analyzers.plans import RankPlan
from analyzers.ranks import Budget, make_plan
from analyzers.ranks.signals import Signals
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError
from loraxs_core.progress import Progress, ProgressCallback
from loraxs_core.targets import select_targets


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """task, data, targets, batch, sequence: as in `SweepSettings`. top: the largest rank measured; a plan with bounded spread needs twice
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

    def __post_init__(self) -> None:
        for name in ("top", "batches", "batch", "sequence"):
            whole(getattr(self, name), f"The number of {name}" if name == "batches" else f"The {name}")
        if self.batches < PARTS:
            raise SettingsError(f"At least {PARTS} batches are needed: the signals are compared between halves of the data.")


def measure_signals(checkpoint: Checkpoint, settings: MeasureSettings, progress: ProgressCallback | None = None) -> Signals:
    """Every kind of `analyzers.ranks.signals.KINDS` for the targets of `checkpoint` on a task.

    Raises SettingsError for a task that cannot be read, CheckpointError for a model that cannot be loaded, WeightsMissing for one
    without weights.
    """
    task = open_task(settings.task)
    splits = task.read(settings.data, None)
    prepared = prepare(checkpoint, task, settings.seed)
    scale = Scale(task, splits.train)
    order = batches(splits.train, batch=settings.batch, steps=max(settings.batches, settings.head_steps), seed=settings.seed)
    used = sorted({index for batch in order for index in batch})
    examples = [splits.train[index] for index in used]
    encoded = Encoded(examples, prepared.tokenizer, scale, sequence=settings.sequence, separate=prepared.separate)
    place = {index: position for position, index in enumerate(used)}
    collate = Collator(prepared.tokenizer, scale, prepared.separate)
    collated = [collate([encoded[place[index]] for index in batch]) for batch in order]

    def tell(done: int, message: str) -> None:
        if progress is not None:
            progress(Progress(done, 4, message))

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        found = prepared.model(**batch)
        return found["loss"]

    prepared.model.eval()
    tell(0, "training the head alone")
    _train_head(prepared, loss, collated[: settings.head_steps])
    read = collated[: settings.batches]
    layers = _adapted(prepared, _largest(checkpoint, settings), settings.seed)
    matrices = {name: layer.loraxs_R["default"] for name, layer in layers.items()}
    for matrix in matrices.values():
        matrix.data.zero_()
    tell(1, "reading gradients")
    curves = gradient_curves(loss, matrices, read)
    tell(2, "a short warm-up")
    curves["warm-up"] = warm_up_curves(loss, matrices, read, METHODS["lora-xs"].learning_rate)
    tell(3, "reading activations")
    curves["activation"] = activation_curves(lambda batch: prepared.model(**batch), layers, read, settings.top)
    tell(4, "done")
    return Signals(checkpoint.name, settings.task, len(read), curves)


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
