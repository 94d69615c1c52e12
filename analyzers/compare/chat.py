"""Conversations as token ids through the tokenizer's chat template: what is read, and which tokens the assistant wrote.

A template is a program; it may rewrite earlier turns (reasoning left out), add a system prompt of its own, or write an empty thought
before an answer. So where a turn's answer stands is found in the text that the template makes of the whole conversation, and not
by counting the tokens of its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from analyzers.compare.tasks import Example
from loraxs_core.errors import SettingsError

IGNORED = -100  # the label of a token that is read and not learnt
ASSISTANT = "assistant"
MARK = "QZJXKWVY"  # in place of an answer, to see where the template puts it: letters, which no template trims or splits at


def conversation(example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """(ids, labels) of a whole conversation: labels are `IGNORED` but for what the assistant wrote from turn `example.learnt_from` on, and
    for the token that ends such a turn.

    Raises SettingsError where the tokenizer has no chat template, or one that refuses the conversation or leaves the answers out.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise SettingsError(
            "The tokenizer of this model has no chat template, so conversations cannot be read; give prompt and completion instead."
        )
    turns, tools = [dict(turn) for turn in example.messages], [dict(tool) for tool in example.tools] or None
    text, turns = _as_held(tokenizer, turns, tools)
    _refuse_lost_calls(tokenizer, text, turns, tools)
    ids, offsets = _tokenised(tokenizer, text)
    labels = [IGNORED] * len(ids)
    for index, turn in enumerate(turns):
        if turn["role"] != ASSISTANT or index < example.learnt_from:
            continue
        begin, end = _answer(tokenizer, text, turns, index, tools)
        if offsets is None:
            places: Sequence[int] = range(_common(tokenizer, text[:begin], ids), _common(tokenizer, text[:end], ids))
        else:  # a token that holds the end of one and the beginning of the other has to be written as well
            places = [place for place, (first, last) in enumerate(offsets) if first < end and last > begin]
        for place in places if end > begin else ():
            labels[place] = ids[place]
    return ids, labels


def _as_held(tokenizer: Any, turns: list[dict], tools: list[dict] | None) -> tuple[str, list[dict]]:
    """(the conversation's text, its turns as the template reads them): contents are texts, or parts of type text where it takes those
    alone, as those of models that see pictures do. Raises SettingsError."""
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    for form in (turns, parts):
        text = _or_none(tokenizer, form, tools)
        if text is not None and _holds(tokenizer, text, form, tools):
            return text, form
    _rendered(tokenizer, turns, tools)  # which says why, where it refuses
    raise SettingsError("The chat template of this tokenizer leaves out what the assistant says; there is nothing to learn.")


def _holds(tokenizer: Any, text: str, turns: list[dict], tools: list[dict] | None) -> bool:
    """Whether `text` holds what the assistant says last; a conversation in which it says nothing in words counts as held."""
    index = next(
        (place for place in reversed(range(len(turns))) if turns[place]["role"] == ASSISTANT and _said(turns[place])), None
    )
    if index is None or _said(turns[index]).strip() in text:
        return True
    return _marked(tokenizer, text, turns, index, tools) != (0, 0)


def _refuse_lost_calls(tokenizer: Any, text: str, turns: list[dict], tools: list[dict] | None) -> None:
    """Raises SettingsError where the assistant calls tools and the template does not write it."""
    called = [turn for turn in turns if turn.get("tool_calls")]
    silent = [{name: value for name, value in turn.items() if name != "tool_calls"} for turn in turns]
    if called and _or_none(tokenizer, silent, tools) == text:
        raise SettingsError(
            "The chat template of this tokenizer leaves out the tools that the assistant calls; take a model that was trained to call tools, or "
            "leave such conversations out."
        )


def _said(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _answer(tokenizer: Any, text: str, turns: list[dict], index: int, tools: list[dict] | None) -> tuple[int, int]:
    """Where in `text` the assistant's turn `index` stands, without the words that call for it and with the token that ends it."""
    before = _or_none(tokenizer, turns[:index], tools, add_generation_prompt=True) if index else None
    through = _or_none(tokenizer, turns[: index + 1], tools)
    begin = len(before) if before is not None and text.startswith(before) else None
    end = len(through) if through is not None and text.startswith(through) else None
    if begin is None or end is None or end <= begin:
        first, last = _marked(tokenizer, text, turns, index, tools)
        begin = first if begin is None else begin
        end = _with_its_end(tokenizer, text, last) if end is None or end <= begin else end
    return begin, _without_space_after(tokenizer, text, begin, end)


def _marked(tokenizer: Any, text: str, turns: list[dict], index: int, tools: list[dict] | None) -> tuple[int, int]:
    """Where the content of turn `index` stands in `text`: what changes with it. (0, 0) where the template leaves it out."""
    said = _said(turns[index])
    mark = MARK if not said or (said[0] != MARK[0] and said[-1] != MARK[-1]) else MARK.lower()
    content = mark if isinstance(turns[index]["content"], str) else [{"type": "text", "text": mark}]
    other = _or_none(tokenizer, [*turns[:index], {**turns[index], "content": content}, *turns[index + 1 :]], tools)
    if other is None or other == text or mark not in other:
        return 0, 0
    begin = _alike(text, other)
    return begin, len(text) - _alike(text[begin:][::-1], other[begin:][::-1])


def _with_its_end(tokenizer: Any, text: str, place: int) -> int:
    """`place`, or where the special token ends that follows it but for spaces."""
    rest = text[place:].lstrip()
    token = next((token for token in _special(tokenizer) if rest.startswith(token)), "")
    return len(text) - len(rest) + len(token) if token else place


def _without_space_after(tokenizer: Any, text: str, begin: int, end: int) -> int:
    """`end` without white space that follows the token that ends a turn: nothing is written there any more."""
    trimmed = len(text[begin:end].rstrip()) + begin
    return trimmed if any(text[begin:trimmed].endswith(token) for token in _special(tokenizer)) else end


@lru_cache(maxsize=2)  # some tokenizers have thousands, and are asked of every turn
def _special(tokenizer: Any) -> list[str]:
    added = [
        str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if getattr(token, "special", False)
    ]
    return sorted({*tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)


def _tokenised(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
    """(ids, where in `text` each of them stands); None for the latter of a tokenizer that cannot tell."""
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), found["offset_mapping"]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]), None


def _common(tokenizer: Any, text: str, ids: list[int]) -> int:
    """How many of `ids` are those of `text`, with which they begin."""
    return _alike(tokenizer(text, add_special_tokens=False)["input_ids"], ids)


def _alike(one: Sequence, other: Sequence) -> int:
    """How many items both begin with."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _or_none(tokenizer: Any, turns: Sequence[Mapping], tools: list[dict] | None, **options: Any) -> str | None:
    """What the template makes of part of a conversation; None where it takes only whole ones."""
    try:
        return _rendered(tokenizer, turns, tools, **options)
    except SettingsError:
        return None


def _rendered(tokenizer: Any, turns: Sequence[Mapping], tools: list[dict] | None, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(turns), tools=tools, tokenize=False, **options))
    except (TemplateError, TypeError, ValueError) as error:  # a template's own refusal, or a turn that it cannot read
        said = str(error).rstrip(".")
        roles = ", ".join(turn["role"] for turn in turns)
        raise SettingsError(f"The tokenizer's chat template refuses a conversation of {roles}: {said}.") from None
