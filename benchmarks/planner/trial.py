"""One trial: a rank plan (or the head alone) on one task with one seed and one rate, by the real tuner and PEFT.

Cheap enough for hundreds of them on a CPU, and fair: per process the base is loaded once, per task everything is tokenised once, per
seed the batches are fixed and the head is trained alone first. Every arm of a seed starts from that head with R at 0, and trains on
the same batches for as many steps; the head alone goes on for as many steps too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from torch import nn

from analyzers.compare.base_and_head import Prepared, initialise_head, prepare
from analyzers.compare.examples import Collator, Encoded, Scale, batches, evaluation_part
from analyzers.compare.tasks import scores
from analyzers.compare.trial_settings import WARMUP
from analyzers.methods import adapter_config
from analyzers.plans import RankPlan
from benchmarks.planner.tasks import TASKS
from sample_models import open_model

CLIP = 1.0  # transformers' max_grad_norm, and so what `loraxs compare` trains with


@dataclass(frozen=True)
class Setup:
    """What all trials of one study share. head_rate: of the head alone, first; joint_head_rate: of the head beside an adapter."""

    model: str
    task: str
    steps: int = 80
    batch: int = 16
    sequence: int = 48
    validation: int = 160
    test: int = 400
    head_rate: float = 0.01
    joint_head_rate: float = 0.003

    @property
    def about(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Material:
    """Of one seed. order: its batches, collated. head: the head after training alone."""

    order: list[dict[str, Any]]
    head: dict[str, torch.Tensor]


class Bench:
    """One model on one task, ready for trials."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.task = TASKS[setup.task][0]
        self.splits = self.task.read(None, None)
        self.checkpoint = open_model(setup.model)
        self.prepared: Prepared = prepare(self.checkpoint, self.task, 0)
        self.scale = Scale(self.task, self.splits.train)
        self.collate = Collator(self.prepared.tokenizer, self.scale, self.prepared.separate)
        self.validation = self._evaluated(evaluation_part(self.splits.validation, setup.validation))
        self.test = self._evaluated(evaluation_part(self.splits.test, setup.test))
        self._materials: dict[int, Material] = {}

    def material(self, seed: int) -> Material:
        """The batches and the trained head of `seed`; the last few are kept."""
        if seed not in self._materials:
            order = batches(self.splits.train, batch=self.setup.batch, steps=self.setup.steps, seed=seed)
            used = sorted({index for batch in order for index in batch})
            encoded = dict(zip(used, self._encoded([self.splits.train[index] for index in used]), strict=True))
            collated = [self.collate([encoded[index] for index in batch]) for batch in order]
            initialise_head(self.prepared.model, self.prepared.head, seed)
            with self._frozen():
                self._train(collated, [{"params": self._head_parameters(), "lr": self.setup.head_rate}])
            self._materials = {seed: Material(collated, self._head_state())}
        return self._materials[seed]

    def run(self, plan: RankPlan | None, rate: float, seed: int) -> dict[str, Any]:
        """Trains `plan` (None: the head alone) and returns its scores; a loss that is no number is told as ``diverged``."""
        material = self.material(seed)
        self.start(seed)
        began = time.perf_counter()
        with self.adapted(plan, seed) as adapter:
            groups = [{"params": self._head_parameters(), "lr": self.setup.joint_head_rate}]
            if adapter:
                groups.append({"params": adapter, "lr": rate})
            losses = self._train(material.order, groups)
            validation, _ = self.score(self.validation)
            test, loss = self.score(self.test)
        return {
            "score": test[self.task.metric],
            "validation_score": validation[self.task.metric],
            "test_loss": loss,
            "train_loss": float(np.mean(losses[-len(losses) // 5 :])),
            "diverged": not math.isfinite(loss),
            "trained": sum(parameter.numel() for parameter in adapter),
            "seconds": round(time.perf_counter() - began, 2),
        }

    def start(self, seed: int) -> None:
        """Puts the trained head of `seed` on the model."""
        self.prepared.model.load_state_dict(self.material(seed).head, strict=False)
        torch.manual_seed(seed)

    @contextmanager
    def adapted(self, plan: RankPlan | None, seed: int) -> Iterator[list[nn.Parameter]]:
        """The model with `plan` on it, and what the adapter trains; without it again afterwards."""
        model, separate = self.prepared.model, self.prepared.separate
        if plan is None:
            with self._frozen():
                yield []
            return
        # without a kind of task, for which PEFT would put a copy of the head in the head's place
        config = adapter_config(plan.spec("lora-xs", task_type=None, modules_to_save=[], seed=seed))
        wrapped = get_peft_model(model.encoder if separate else model, config)
        try:
            found = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
            for name in self.prepared.head:
                model.get_submodule(name).requires_grad_(True)
            yield found
        finally:
            base = wrapped.unload()
            if separate:
                model.encoder = base
            model.requires_grad_(False)
            for name in self.prepared.head:
                model.get_submodule(name).requires_grad_(True)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Inside the block a sentence encoder reads each batch once, however often the head alone is trained or scored on it."""
        self.prepared.model.remembers = True  # looked at by `SentenceModel` alone
        try:
            yield
        finally:
            self.prepared.model.remembers = False

    def layers(self, names: list[str], plan: RankPlan) -> dict[str, nn.Module]:
        """Layer name of `plan` -> its module, while `adapted`."""
        found = {path: module for path, module in self.prepared.model.named_modules() if hasattr(module, "loraxs_R")}
        ends = {name: f".{plan.modules.get(name, name)}" for name in names}
        return {name: next(module for path, module in found.items() if f".{path}".endswith(end)) for name, end in ends.items()}

    def score(self, parts: list[dict[str, Any]]) -> tuple[dict[str, float], float]:
        """(every metric of the task, mean loss) over collated batches."""
        self.prepared.model.eval()
        outputs, labels, losses = [], [], []
        with torch.no_grad():
            for batch in parts:
                found = self.prepared.model(**batch)
                outputs.append(found["logits"].float().numpy())
                labels.append(batch["labels"].numpy())
                losses.append(float(found["loss"]) * len(batch["labels"]))
        expected = np.concatenate(labels)
        return scores(self.task.kind, np.concatenate(outputs), expected), sum(losses) / len(expected)

    def _train(self, order: list[dict[str, Any]], groups: list[dict]) -> list[float]:
        """AdamW without weight decay, linear schedule with 6 % warm-up, as `loraxs compare` trains. Returns the losses."""
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        steps, warm = len(order), math.ceil(WARMUP * len(order))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (step + 1) / warm if step < warm else (steps - step) / max(steps - warm, 1)
        )
        trained = [parameter for group in groups for parameter in group["params"]]
        self.prepared.model.eval()  # without dropout: one source of chance less between paired arms
        losses = []
        for batch in order:
            loss = self.prepared.model(**batch)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        return losses

    def _encoded(self, examples: list) -> Encoded:
        return Encoded(
            examples, self.prepared.tokenizer, self.scale, sequence=self.setup.sequence, separate=self.prepared.separate
        )

    def _evaluated(self, examples: list) -> list[dict[str, Any]]:
        encoded = self._encoded(examples)
        size = 2 * self.setup.batch
        return [
            self.collate([encoded[index] for index in range(begin, min(begin + size, len(encoded)))])
            for begin in range(0, len(encoded), size)
        ]

    def _head_parameters(self) -> list[nn.Parameter]:
        return [parameter for name in self.prepared.head for parameter in self.prepared.model.get_submodule(name).parameters()]

    def _head_state(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": value.clone()
            for name in self.prepared.head
            for key, value in self.prepared.model.get_submodule(name).state_dict().items()
        }
