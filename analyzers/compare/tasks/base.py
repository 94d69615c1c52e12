"""What a task is: text with answers, how it is split, and what counts as a good answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from analyzers.compare.tasks.metrics import CAUSAL, CLASSIFICATION, METRIC_LABELS, REGRESSION
from analyzers.compare.tasks.overlap import Overlap, overlap_of
from loraxs_core.progress import ProgressCallback

__all__ = ["CAUSAL", "CLASSIFICATION", "REGRESSION", "Definition", "Example", "Splits", "Task"]  # what a task's file needs


@dataclass(frozen=True)
class Example:
    """A text (or a pair of texts) and its label: a class index, or the number to predict.

    Of a decoder's task, `text` is the prompt and `answer` what is to be written after it; with an answer of None the text itself is
    what is learnt. messages: a conversation instead, whose assistant's turns are the answers, from turn `learnt_from` on; tools: that it
    may call, as chat templates take them. row: the row as it was published,
    which the definition that scores it reads.
    """

    text: str
    label: float = 0.0
    pair: str | None = None
    answer: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    learnt_from: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()
    row: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def read(self) -> str:
        """All that is read before an answer: both texts of a pair, the prompt."""
        return self.text if self.pair is None else f"{self.text}\n{self.pair}"

    @property
    def length(self) -> int:
        """Characters to read."""
        return len(self.text) + len(self.pair or "") + len(self.answer or "")


@dataclass(frozen=True)
class Splits:
    """train: what is learnt from. validation: for the curves and for choosing learning rates. test: the reported score. more: other
    test splits by name, scored beside it. remark: what a reader of the scores should know of the split."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    more: Mapping[str, tuple[Example, ...]] = field(default_factory=dict, kw_only=True)
    remark: str = field(default="", kw_only=True)

    @classmethod
    def of(
        cls, parts: Mapping[str, Sequence[Example]], more: Mapping[str, tuple[Example, ...]] | None = None, remark: str = ""
    ) -> Splits:
        """From the parts ``train``, ``validation`` and ``test``."""
        return cls(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), more=more or {}, remark=remark)

    @cached_property
    def overlap(self) -> Overlap:
        """How much of the test split's text is trained on or chosen on as well."""
        return overlap_of(
            [example.read for example in self.test], (example.read for example in (*self.train, *self.validation))
        )


@dataclass(frozen=True)
class Definition:
    """How lm-evaluation-harness asks and scores: of the training rows too, so that a decoder learns what it is asked later.

    name: the harness's own task. folder: where its definition lies among the harness's tasks. config: a whole configuration of a
    task that the harness has not, in its own words. tokens: written at most; 0 where the answers it gives are weighed.
    """

    name: str
    folder: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    tokens: int = 0

    @property
    def writes(self) -> bool:
        """Whether the model writes its answer, and has to learn where to stop."""
        return self.tokens > 0


def no_source(data: str | None, progress: ProgressCallback | None) -> Splits:
    raise NotImplementedError("a task needs `read`")


@dataclass(frozen=True)
class Task:
    """Data plus metric. Adding one is adding a file to `analyzers.compare.tasks` with a `TASK` in it (one task, or a tuple).

    kind: ``regression``, ``classification``, or ``causal``: a decoder that writes the answer. metric: the one that is reported, a
    key of `METRIC_LABELS`. classes: their names, in the order of the labels. pairs: whether an example is two texts. read: gives the
    splits; its first argument is a folder or file the user named, or None. missing: one sentence on why it cannot be read on this
    machine, or None when it can. remark: one sentence on what was left out of the data. definition: how lm-evaluation-harness scores
    a decoder; None where the likelihood of the answers is the score. group: what it is listed under.
    """

    name: str
    label: str
    summary: str
    kind: str
    metric: str
    licence: str = ""
    classes: tuple[str, ...] = ()
    pairs: bool = False
    read: Callable[[str | None, ProgressCallback | None], Splits] = field(default=no_source, compare=False)
    missing: Callable[[], str | None] = field(default=lambda: None, compare=False)
    remark: str = ""
    definition: Definition | None = None
    group: str = "Your own"

    @property
    def outputs(self) -> int:
        """Width of the head: one number, or one logit a class."""
        return 1 if self.kind == REGRESSION else len(self.classes)

    @property
    def metric_label(self) -> str:
        return METRIC_LABELS[self.metric]
