"""Decoders that write answers: prompts and answers as token ids, with the loss on the answers alone.

The border between prompt and answer is found as lm-evaluation-harness finds it: both are tokenised together, and the prompt is as
many tokens as it has by itself. Conversations go through the tokenizer's own chat template, and the assistant's turns are the answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analyzers.compare.chat import IGNORED, conversation
from analyzers.compare.tasks import Example
from analyzers.compare.tokens import Tokens, tokens

MOST_LOGITS = 2**26  # numbers that one batch of an evaluation may hold


@dataclass(frozen=True)
class Written:
    """input_ids: prompt and answer. labels: the same, `IGNORED` where the prompt is. cut: whether it was longer than allowed."""

    input_ids: list[int]
    labels: list[int]
    cut: bool = False

    @property
    def length(self) -> int:
        return len(self.input_ids)


class WrittenSet(torch.utils.data.Dataset):
    """Examples as `Written`; items of ``input_ids`` and ``labels``."""

    def __init__(self, written: Sequence[Written]):
        self.written = written

    def __len__(self) -> int:
        return len(self.written)

    def tokens(self, index: int) -> int:
        """How many there are in one example."""
        return self.written[index].length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.written[index].input_ids, "labels": self.written[index].labels}


class AnswerCollator:
    """Pads a batch to its longest example, on the right."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["input_ids"]) for item in items)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([item[name] + [value] * (longest - len(item[name])) for item in items])

        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        mask = (torch.arange(longest)[None] < lengths[:, None]).long()
        return {"input_ids": padded("input_ids", self.pad), "attention_mask": mask, "labels": padded("labels", IGNORED)}


def written(examples: Sequence[Example], tokenizer: Any, sequence: int, *, ends: bool) -> list[Written]:
    """Every example as token ids, at most `sequence` of them. ends: whether the answer ends with the tokenizer's end of text, so that
    a model that writes learns to stop.

    A prompt that is too long loses its beginning; an answer that is too long, its end. Raises SettingsError where a tokenizer has no
    chat template and conversations are to be read.
    """
    if not examples:
        return []

    def make() -> Tokens:
        found = _written(examples, tokenizer, sequence, ends)
        columns = {"input_ids": [one.input_ids for one in found], "labels": [one.labels for one in found]}
        return Tokens.of(columns, [one.cut for one in found])

    texts = [
        [example.text, example.answer, example.learnt_from, list(example.tools), *(dict(turn) for turn in example.messages)]
        for example in examples
    ]
    template = getattr(tokenizer, "chat_template", None) if examples[0].messages else None
    found = tokens(tokenizer, texts, make, "written", sequence, ends, template)
    return [
        Written(found.text(index, "input_ids"), found.text(index, "labels"), bool(found.cut[index]))
        for index in range(len(found))
    ]


def _written(examples: Sequence[Example], tokenizer: Any, sequence: int, ends: bool) -> list[Written]:
    if examples[0].messages:
        return [_whole(*conversation(example, tokenizer), sequence) for example in examples]
    if examples[0].answer is None:
        return _blocks(examples, tokenizer, sequence)
    return [_fitted(*_answered(example, tokenizer, ends), sequence) for example in examples]


def _answered(example: Example, tokenizer: Any, ends: bool) -> tuple[list[int], list[int]]:
    prompt, answer = example.text, example.answer or ""
    spaces = len(prompt) - len(prompt.rstrip())
    if spaces:  # tokenizers take a space with the word after it
        prompt, answer = prompt[:-spaces], prompt[-spaces:] + answer
    before = _without_end(tokenizer(prompt)["input_ids"], tokenizer)
    whole = _without_end(tokenizer(prompt + answer)["input_ids"], tokenizer)
    after = whole[len(before) :]
    if ends and tokenizer.eos_token_id is not None:
        after = [*after, tokenizer.eos_token_id]
    return before, after


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _fitted(before: list[int], after: list[int], sequence: int) -> Written:
    """Prompt and answer; of the prompt at least its last token stays, from which the first of the answer is learnt."""
    kept = after[: sequence - 1] if before else after[:sequence]
    room = sequence - len(kept)
    start = before[-room:]
    return Written([*start, *kept], [IGNORED] * len(start) + kept, len(before) + len(after) > sequence)


def _whole(ids: list[int], labels: list[int], sequence: int) -> Written:
    return Written(ids[-sequence:], labels[-sequence:], len(ids) > sequence)


def _blocks(examples: Sequence[Example], tokenizer: Any, sequence: int) -> list[Written]:
    """Texts one after the other, cut into blocks of `sequence` tokens, each read without the one before.

    Where the tokenizer begins a text with a token of its own, each block begins with it, and no paragraph amid a block: to know that
    one comes would count as knowing the text.
    """
    ids: list[int] = []
    for example in examples:
        ids += tokenizer(example.text + "\n\n", add_special_tokens=False)["input_ids"]
    begin = tokenizer("")["input_ids"][:1]
    begin = begin if sequence > 2 and begin == [tokenizer.bos_token_id] else []
    room = sequence - len(begin)
    blocks = [[*begin, *ids[start : start + room]] for start in range(0, len(ids), room)]
    return [Written(block, list(block)) for block in blocks if len(block) > 1]


def answer_likelihoods(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(batch, 2): the summed negative log-likelihood of each example's answer, and how many tokens it has.

    logits: (batch, tokens, vocabulary), or more tokens where an adapter puts some of its own before a text (prompt tuning). labels: (batch,
    tokens), `IGNORED` where nothing is to be written.
    """
    targets = labels[:, 1:]
    logits = logits[:, logits.shape[1] - labels.shape[1] :]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.sum(1), (targets != IGNORED).sum(1).to(losses.dtype)], dim=1)


def answers_alone(batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """`batch` with logits asked for from the first answer on, where `model` (PEFT's around it or not) can be asked so: a prompt's words are
    not learnt, and a distribution over all words for each of them is a fifth of SmolLM2-135M's products.

    batch: as `AnswerCollator` gives it. Loss and likelihoods come out the same to rounding.
    """
    labels = batch["labels"]
    answered = (labels != IGNORED).any(0).nonzero()
    start = int(answered[0]) - 1 if len(answered) else 0
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapter = getattr(model, "active_peft_config", None)
    lengthens = adapter is not None and adapter.is_prompt_learning  # which puts labels of its own before these
    if start < 1 or lengthens or "logits_to_keep" not in inspect.signature(inner.forward).parameters:
        return batch
    return {**batch, "labels": labels[:, start:].contiguous(), "logits_to_keep": labels.shape[1] - start}


def evaluation_batch(wanted: int, sequence: int, vocabulary: int) -> int:
    """Examples at a time: `wanted`, or fewer where their logits would not fit."""
    return max(1, min(wanted, MOST_LOGITS // (sequence * vocabulary)))
