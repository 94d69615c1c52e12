"""The settings of one trial, what its work costs, and who listens to it. Everything else in this package imports this file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from analyzers.methods import METHODS, Method, method
from analyzers.methods.own import own_method
from analyzers.plans import RankPlan
from loraxs_core.errors import SettingsError
from loraxs_core.names import short_name
from loraxs_core.progress import Cancellation, Cancelled

WARMUP = 0.06  # share of the steps; the LoRA-XS paper's GLUE setting, as are AdamW, the linear schedule and no dropout
FORWARD, BACKWARD = 1.0, 1.5  # relative time of the two halves of a step, for the progress bar alone


class Diverged(SettingsError):
    """Training whose loss is no number any more."""


@dataclass(frozen=True)
class Listener:
    """Who is told what a trial does, and may stop it.

    report: takes the curve's points, ``{"kind": "train" | "eval", "step", "epoch", "value"}``. advance: takes finished cost (1
    is one batch read forward) and what is being done. cancelled: whether to stop. began: takes the step that training begins at,
    0 unless it goes on from a checkpoint. note: takes a line for the log.
    """

    report: Callable[[dict], None] = lambda line: None
    advance: Callable[[float, str], None] = lambda cost, message: None
    cancelled: Cancelled = lambda: False
    began: Callable[[int], None] = lambda step: None
    note: Callable[[str], None] = lambda text: None

    def stop_if_asked(self) -> None:
        """Raises Cancellation when somebody asked for it."""
        if self.cancelled():
            raise Cancellation


@dataclass(frozen=True)
class TrialSettings:
    """Everything that decides a trial, besides the model and the task.

    rank: of every module; plan: a rank each instead (`RankPlan.to_dict`), called plan_label. options: further arguments of the method's
    configuration, called note. config: the whole configuration where the method is the user's own. learning_rate: of the adapter (of
    all weights for ``full``); head_learning_rate: of the head. batch: examples a step. sequence: tokens a text at most.
    evaluations: points of the validation curve; validation_examples, test_examples: at most so many, None for all. processes: that train it together,
    each a part of every batch.
    """

    method: str
    seed: int
    learning_rate: float
    head_learning_rate: float
    steps: int
    batch: int
    sequence: int
    rank: int | None = None
    plan: dict | None = field(default=None, compare=False)
    plan_label: str = ""
    options: dict = field(default_factory=dict, compare=False)
    note: str = ""
    config: dict | None = field(default=None, compare=False)
    targets: str | tuple[str, ...] = "paper"
    evaluations: int = 5
    validation_examples: int | None = None
    test_examples: int | None = None
    device: str = "auto"
    report_to: tuple[str, ...] = ()
    processes: int = 1

    @property
    def id(self) -> str:
        """Its folder's name, unique within a sweep."""
        return f"{self.place}_lr{self.learning_rate:g}_seed{self.seed}"

    @property
    def place(self) -> str:
        """What the folders of its variant's trials begin with."""
        parts = [_file_name(self.method)]
        if self.plan_label:
            parts.append(_file_name(self.plan_label))
        elif self.rank is not None:
            parts += [*(f"{name}-{value}" for name, value in self.options.items()), f"r{self.rank}"]
        return "_".join(parts)

    @property
    def variant(self) -> str:
        """What rows of different seeds have in common: method, ranks, and what an ablation changes."""
        what = self.plan_label or self.note
        return f"{self.kind.label}, {what}" if what else self.kind.label

    @property
    def kind(self) -> Method:
        return method(self.method) if self.config is None else own_method(self.method, self.config, METHODS)

    @property
    def about(self) -> dict:
        """What its record, its failure and its points on the curves all say of it."""
        return {
            "trial": self.id,
            "method": self.method,
            "label": self.variant,
            "seed": self.seed,
            "learning_rate": self.learning_rate,
        }

    @property
    def evaluation_batch(self) -> int:
        return 2 * self.batch

    @property
    def warmup_steps(self) -> int:
        return math.ceil(WARMUP * self.steps)

    @property
    def training_cost(self) -> float:
        return self.steps * (FORWARD if self.method == "head-only" else FORWARD + BACKWARD)

    def cost(self, validation: int, test: int) -> float:
        """All its work in batches read forward. validation, test: examples there are of each."""
        evaluated = min(validation, self.validation_examples or validation)
        tested = min(test, self.test_examples or test)
        batch = self.evaluation_batch
        return self.training_cost + FORWARD * (self.evaluations * -(-evaluated // batch) + -(-tested // batch))

    def rank_plan(self) -> RankPlan:
        """`plan` as a `RankPlan`. Raises PlanError."""
        return RankPlan.from_dict(self.plan or {}, f"The plan {self.plan_label!r}")


def _file_name(text: str) -> str:
    return short_name("".join(letter if letter.isalnum() else "-" for letter in text))
