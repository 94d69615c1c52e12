"""Decoders scored by lm-evaluation-harness on the model in memory: its questions, its arithmetic, nothing saved or loaded between.

The harness is a dependency of its own (``pip install loraxs-workbench[decoders]``) and is imported when a trial is scored.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from analyzers.compare.tasks import Example, Task
from analyzers.compare.tasks.definitions import harness_task, hushed
from analyzers.compare.trial_settings import FORWARD, Listener
from analyzers.compare.writing_room import refuse_length
from loraxs_core.errors import SettingsError

# What the harness calls it (of a filter), and its name here; the first of each that there is counts.
NAMES = {
    ("acc", "none"): "accuracy",
    ("acc_norm", "none"): "accuracy_normalised",
    ("exact_match", "none"): "exact_match",
    ("exact_match", "strict-match"): "exact_match",
    ("exact_match", "flexible-extract"): "exact_match_flexible",
}

CHOICES = 4  # of a question, for the progress bar alone


@dataclass(frozen=True)
class Scored:
    """means: metric -> its mean. right: (n,), 1 where the reported metric counts an answer as right, in the order of the examples.
    cut: how many questions are longer than `room` tokens, which is what the model has for them, and were read without their beginning."""

    means: Mapping[str, float]
    right: np.ndarray
    cut: int = 0
    room: int = 0


def score(model: nn.Module, tokenizer: Any, task: Task, examples: Sequence[Example], batch: int, listener: Listener) -> Scored:
    """What lm-evaluation-harness makes of `model` on `examples`, `batch` at a time. Stops soon after the listener asks for it.

    Raises SettingsError where the harness is not installed and where the model has no room for the answers.
    """
    if task.definition is None:
        raise SettingsError(f"{task.label} has no definition that lm-evaluation-harness could score.")
    definition = task.definition
    rows = [example.row or {} for example in examples]
    asked = harness_task(definition, rows)
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    if definition.writes:
        asked.config.generation_kwargs = {**(asked.config.generation_kwargs or {}), "max_gen_toks": definition.tokens}
    share = FORWARD / batch / (definition.tokens or CHOICES)
    with hushed(), _heard(model, share, listener), contextlib.redirect_stderr(io.StringIO()):  # its bars have no other switch
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        refuse_length(lm.max_length, task, "this model")  # where its tokenizer alone says so
        found = evaluate(lm, {definition.name: asked}, bootstrap_iters=0, log_samples=True)
        samples = found["samples"][definition.name]
        room = lm.max_length - definition.tokens
        cut = {sample["doc_id"] for sample in samples if any(_length(lm, asked) > room for asked in _asked(sample))}
    by_metric: dict[str, dict[int, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            name = NAMES.get((metric, sample["filter"]))
            if name is not None:
                by_metric.setdefault(name, {})[sample["doc_id"]] = float(sample[metric])
    means = {name: float(np.mean(list(values.values()))) for name, values in by_metric.items()}
    if task.metric not in means:
        raise SettingsError(
            f"lm-evaluation-harness gave no {task.metric} of {task.label}; its version may be another than is known here."
        )
    reported = by_metric[task.metric]
    return Scored(means, np.array([reported[place] for place in sorted(reported)]), len(cut), room)


def _asked(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(question, answer) of every request that was made of one example; the answer is empty where one was written."""
    found = sample["arguments"]
    requests = [list(one.values()) for one in found.values()] if isinstance(found, Mapping) else [list(one) for one in found]
    return [(str(one[0]), one[1] if len(one) > 1 and isinstance(one[1], str) else "") for one in requests if one]


def _length(lm: Any, asked: tuple[str, str]) -> int:
    """Tokens of a question with its answer."""
    question, answer = asked
    most = 32 * lm.max_length  # characters beyond which no tokenizer fits a text into that many tokens
    return lm.max_length + 1 if len(question) > most else len(lm.tok_encode(question + answer))


@contextlib.contextmanager
def _heard(model: nn.Module, share: float, listener: Listener) -> Iterator[None]:
    """Tells `listener` of every example that is read, `share` of a cost each, and lets it stop the work between two of the model's steps."""

    def hear(module: nn.Module, args: tuple, options: dict[str, Any]) -> None:
        listener.stop_if_asked()
        read = args[0] if args else options.get("input_ids")
        listener.advance(share * (len(read) if read is not None else 1), "asking")

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = inner.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
