"""Which examples a trial sees, in which order, and as which tensors. Depends on the task and the seed, never on the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from analyzers.compare.base_and_head import Prepared
from analyzers.compare.causal import AnswerCollator, Written, WrittenSet, written
from analyzers.compare.tasks import CAUSAL, REGRESSION, Example, Splits, Task
from analyzers.compare.tokens import Tokens, tokens
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.errors import SettingsError

COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
WINDOW = 16  # batches sorted by length together: less padding, which on a CPU is most of the time


Lengths = Callable[[Sequence[int]], np.ndarray]  # indices of examples -> how long each is


def batches(
    examples: Sequence[Example | Written], *, batch: int, steps: int, seed: int, lengths: Lengths | None = None
) -> list[list[int]]:
    """`steps` batches of `batch` indices into `examples`: a new shuffle each epoch, texts of like length together.

    Within every window of 16 batches the examples are sorted by length, cut into batches, and the batches shuffled; the last,
    incomplete batch of an epoch is left out unless the epoch is smaller than one batch. lengths: by which to sort, asked once, of every
    example that is drawn; the characters to read when left out.
    """
    random = np.random.default_rng(seed)
    size = min(batch, len(examples))
    windows: list[tuple[np.ndarray, np.ndarray]] = []
    found = 0
    while found < steps:
        order = random.permutation(len(examples))
        order = order[: len(order) - len(order) % size]
        for start in range(0, len(order), size * WINDOW):
            window = order[start : start + size * WINDOW]
            windows.append((window, random.permutation(len(window) // size)))
            found += len(window) // size
            if found >= steps:
                break
    drawn = sorted({int(index) for window, _ in windows for index in window})
    long = np.zeros(len(examples), dtype=np.int64)
    long[drawn] = lengths(drawn) if lengths else [examples[index].length for index in drawn]
    result: list[list[int]] = []
    for window, shuffled in windows:
        window = window[np.argsort(long[window], kind="stable")]
        result.extend(window.reshape(-1, size)[shuffled].tolist())
    return result[:steps]


def evaluation_part(examples: Sequence[Example], most: int | None) -> list[Example]:
    """At most `most` examples, the same ones in every trial, sorted by length so that batches hold little padding."""
    if most is not None and most < len(examples):
        chosen = np.random.default_rng(0).choice(len(examples), most, replace=False)
        examples = [examples[index] for index in sorted(chosen)]
    return sorted(examples, key=lambda example: example.length)


class Scale:
    """What labels are trained as: class indices as they are; numbers standardised by the training labels (mean 0, variance 1),
    so that one learning rate suits scores from 0 to 5 as well as prices. Correlations do not change."""

    def __init__(self, task: Task, examples: Sequence[Example]):
        self.regression = task.kind == REGRESSION
        values = np.array([example.label for example in examples], dtype=np.float64)
        self.mean, self.deviation = (float(values.mean()), float(values.std())) if self.regression else (0.0, 1.0)
        if self.deviation == 0:
            raise SettingsError(f"Every training label of {task.label} is {values[0]:g}: there is nothing to learn.")

    def __call__(self, label: float) -> float | int:
        return (label - self.mean) / self.deviation if self.regression else int(label)


class Encoded(torch.utils.data.Dataset):
    """Examples as token ids, tokenised once. Items: ``first`` (and ``second`` for pairs read separately), ``labels``.

    by_length: the shortest first, by the tokens of an example's longer text, to which a batch is padded.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Any,
        scale: Scale,
        *,
        sequence: int,
        separate: bool,
        by_length: bool = False,
    ):
        first = [example.text for example in examples]
        pairs = [example.pair or "" for example in examples] if examples and examples[0].pair is not None else None
        self.first = self._tokens(tokenizer, first, None if separate else pairs, sequence)
        self.second = self._tokens(tokenizer, pairs, None, sequence) if separate and pairs else None
        self.places = np.argsort(self.widths, kind="stable") if by_length else np.arange(len(examples))
        self.labels = [scale(examples[place].label) for place in self.places]

    @property
    def widths(self) -> np.ndarray:
        """(n,) tokens of the longer text of each example, in the order that they were given in."""
        sides = [texts.lengths for texts in (self.first, self.second) if texts is not None]
        return np.maximum.reduce(sides)

    @property
    def cut(self) -> int:
        """Examples of which a text is longer than is read."""
        each = [texts.cut for texts in (self.first, self.second) if texts is not None]
        return int(np.maximum.reduce(each).sum())

    @staticmethod
    def _tokens(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, sequence: int) -> Tokens:
        def make() -> Tokens:
            found = tokenizer(list(texts), pairs, truncation=True, max_length=sequence)
            # Whether one was longer is asked only of those that fill their room.
            full = [place for place, ids in enumerate(found["input_ids"]) if len(ids) >= sequence]
            again = [texts[place] for place in full], [pairs[place] for place in full] if pairs else None
            whole = tokenizer(*again)["input_ids"] if full else []
            longer = {place for place, ids in zip(full, whole, strict=True) if len(ids) > sequence}
            return Tokens.of(
                {key: found[key] for key in found if key in COLUMNS}, [place in longer for place in range(len(texts))]
            )

        together = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return tokens(tokenizer, together, make, "read", sequence)

    def __len__(self) -> int:
        return len(self.labels)

    def tokens(self, index: int) -> int:
        return sum(int(texts.lengths[self.places[index]]) for texts in (self.first, self.second) if texts is not None)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(self.places[index])
        item = {"first": {key: self.first.text(place, key) for key in self.first.columns}, "labels": self.labels[index]}
        if self.second is not None:
            item["second"] = {key: self.second.text(place, key) for key in self.second.columns}
        return item


class Collator:
    """Pads a batch to its longest text. Gives what `SentenceModel` or a transformers head takes."""

    def __init__(self, tokenizer: Any, scale: Scale, separate: bool):
        self.tokenizer, self.regression, self.separate = tokenizer, scale.regression, separate

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        labels = torch.tensor([item["labels"] for item in items], dtype=torch.float32 if self.regression else torch.long)
        first = self._padded([item["first"] for item in items])
        if not self.separate:
            return {**first, "labels": labels}
        batch = {"first": first, "labels": labels}
        if "second" in items[0]:
            batch["second"] = self._padded([item["second"] for item in items])
        return batch

    def _padded(self, texts: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return dict(self.tokenizer.pad({key: [text[key] for text in texts] for key in texts[0]}, return_tensors="pt"))


@dataclass(frozen=True)
class TrialExamples:
    """What one trial reads, as tensors. train: those examples of the training split that `order` (indices into it, a list a batch)
    uses; epoch: how many the split has. validation, test: what is evaluated on; more: further test splits by name. asked: the test
    examples as they stand, for a definition that scores them. sequence: tokens that are read of one at most. cut, test_cut: training and test
    examples that were longer."""

    kind: str
    scale: Scale
    train: Encoded | WrittenSet
    order: list[list[int]]
    epoch: int
    validation: Encoded | WrittenSet
    test: Encoded | WrittenSet
    collate: Collator | AnswerCollator
    more: Mapping[str, Encoded] = field(default_factory=dict)
    asked: Sequence[Example] = ()
    sequence: int = 0
    cut: int = 0
    test_cut: int = 0

    @property
    def tokens(self) -> int:
        """Trained on in all steps together, without padding."""
        each = [self.train.tokens(index) for index in range(len(self.train))]
        return sum(each[index] for batch in self.order for index in batch)

    @classmethod
    def of(cls, splits: Splits, task: Task, trial: TrialSettings, prepared: Prepared, most: int | None = None) -> TrialExamples:
        """Tokenises what `trial` reads of `splits`. most: tokens that the model reads at once, where it is known. Raises SettingsError where
        there is nothing to learn."""
        sequence = min(trial.sequence, most) if most else trial.sequence
        if task.kind == CAUSAL:
            return cls._written(splits, task, trial, prepared, sequence)
        scale = Scale(task, splits.train)

        def encode(examples: Sequence[Example], by_length: bool = False) -> Encoded:
            return Encoded(
                examples,
                prepared.tokenizer,
                scale,
                sequence=sequence,
                separate=prepared.separate,
                by_length=by_length,
            )

        def lengths(drawn: Sequence[int]) -> np.ndarray:
            place.update({index: position for position, index in enumerate(drawn)})
            encoded.append(encode([splits.train[index] for index in drawn]))
            return encoded[0].widths

        place: dict[int, int] = {}
        encoded: list[Encoded] = []
        order = batches(splits.train, batch=trial.batch, steps=trial.steps, seed=trial.seed, lengths=lengths)
        test = encode(evaluation_part(splits.test, trial.test_examples), by_length=True)
        return cls(
            task.kind,
            scale,
            train=encoded[0],
            order=[[place[index] for index in batch] for batch in order],
            epoch=len(splits.train),
            validation=encode(evaluation_part(splits.validation, trial.validation_examples), by_length=True),
            test=test,
            collate=Collator(prepared.tokenizer, scale, prepared.separate),
            more={
                name: encode(evaluation_part(part, trial.test_examples), by_length=True) for name, part in splits.more.items()
            },
            sequence=sequence,
            cut=encoded[0].cut,
            test_cut=test.cut,
        )

    @classmethod
    def _written(cls, splits: Splits, task: Task, trial: TrialSettings, prepared: Prepared, sequence: int) -> TrialExamples:
        """Of a task whose answers are written."""
        read = splits.train
        runs_on = read[0].answer is None and not read[0].messages  # text in blocks: which are cut before they are drawn
        ends = not runs_on and (task.definition is None or task.definition.writes)

        def encode(examples: Sequence[Example]) -> list[Written]:
            return written(examples, prepared.tokenizer, sequence, ends=ends)

        if runs_on:
            blocks = encode(read)
            order = batches(blocks, batch=trial.batch, steps=trial.steps, seed=trial.seed)
        else:
            order = batches(read, batch=trial.batch, steps=trial.steps, seed=trial.seed)
        used = sorted({index for batch in order for index in batch})
        place = {index: position for position, index in enumerate(used)}
        train = [blocks[index] for index in used] if runs_on else encode([read[index] for index in used])
        asked = list(splits.test) if runs_on else evaluation_part(splits.test, trial.test_examples)
        test = WrittenSet(_evaluated(encode, asked, trial.test_examples, runs_on))
        return cls(
            task.kind,
            Scale(task, read),
            train=WrittenSet(train),
            order=[[place[index] for index in batch] for batch in order],
            epoch=len(blocks) if runs_on else len(read),
            validation=WrittenSet(_evaluated(encode, splits.validation, trial.validation_examples, runs_on)),
            test=test,
            collate=AnswerCollator(prepared.tokenizer.pad_token_id),
            asked=asked,
            sequence=sequence,
            cut=sum(one.cut for one in train),
            test_cut=sum(one.cut for one in test.written),
        )


def _evaluated(
    encode: Callable[[Sequence[Example]], list[Written]], examples: Sequence[Example], most: int | None, runs_on: bool
) -> list[Written]:
    """What is evaluated on; a text that runs on stays in its order, and its blocks are counted instead."""
    return encode(examples)[:most] if runs_on else encode(evaluation_part(examples, most))
