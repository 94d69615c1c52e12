"""Conversations as token ids through the tokenizer's chat template: what is read, and which tokens the assistant wrote.

A template is a program; it may rewrite earlier turns (reasoning left out), add a system prompt of its own, write an empty thought
before an answer, or put what a tool said amid the turn that called it. So where a turn's answer stands is found in the text that the
template makes of the whole conversation, and not by counting the tokens of its beginning: where the text up to the turn is no beginning
of the whole one, by what changes in the whole one with what the turn says, thinks or calls.

Learnt is what the model itself writes when it is asked: from the words that call for an answer (template's ``add_generation_prompt``, an
empty thought among them where the template puts one there) to the token that ends the turn, and nothing behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError

from analyzers.compare.tasks import Example
from loraxs_core.errors import SettingsError

IGNORED = -100  # the label of a token that is read and not learnt
ASSISTANT = "assistant"
MARK = "QZJXKWVY"  # in place of an answer, to see where the template puts it: letters, which no template trims or splits at
THOUGHTS = ("reasoning_content", "reasoning", "thinking")

Turns = Sequence[Mapping[str, Any]]


def conversation(example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """(ids, labels) of a whole conversation: labels are `IGNORED` but for what the assistant wrote from turn `example.learnt_from` on, and
    for the token that ends such a turn. Where the template ends the last one with none, the tokenizer's end of text stands there.

    Raises SettingsError where the tokenizer has no chat template, or one that refuses the conversation or leaves the answers out.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise SettingsError(
            "The tokenizer of this model has no chat template, so conversations cannot be read; give prompt and completion instead."
        )
    tools = [dict(tool) for tool in example.tools] or None
    chat = _as_held(tokenizer, [dict(turn) for turn in example.messages], tools)
    chat.refuse_lost_calls()
    ids, offsets = _tokenised(tokenizer, chat.text)
    labels, stops = [IGNORED] * len(ids), False
    for index, turn in enumerate(chat.turns):
        if turn["role"] != ASSISTANT or index < example.learnt_from:
            continue
        for begin, end in chat.said(index):
            if offsets is None:
                places: Sequence[int] = range(
                    _common(tokenizer, chat.text[:begin], ids), _common(tokenizer, chat.text[:end], ids)
                )
            else:  # a token that holds the end of one and the beginning of the other has to be written as well
                places = [place for place, (first, last) in enumerate(offsets) if first < end and last > begin]
            for place in places:
                labels[place] = ids[place]
            stops = not chat.is_open(end)
    if not stops and labels and labels[-1] != IGNORED and tokenizer.eos_token_id is not None:
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return ids, labels


@dataclass(frozen=True)
class _Chat:
    """text: what the template of `tokenizer` makes of `turns`, which are in a form that it reads, and of `tools`."""

    tokenizer: Any
    turns: list[dict]
    tools: list[dict] | None
    text: str

    def said(self, index: int) -> list[tuple[int, int]]:
        """Where in `text` the assistant's turn `index` stands, without the words that call for it and with the token that ends it: in
        several pieces where the template puts others' words in between, in none where it leaves the turn out."""
        before = self.rendered(self.turns[:index], add_generation_prompt=True) if index else None
        through = self.rendered(self.turns[: index + 1])
        begin = len(before) if before is not None and self.text.startswith(before) else None
        end = len(through) if through is not None and self.text.startswith(through) else None
        pieces = [(begin, end)] if begin is not None and end is not None and end > begin else self._found(index, begin, end)
        found = []
        for first, last in pieces:
            first += len(self.calling) if self._is_called_again(index, first) else 0
            last = self._without_what_follows(first, last)
            last = self._with_its_end(last) if self.is_open(last) else last
            if last > first:
                found.append((first, last))
        return found

    def holds_words(self) -> bool:
        """Whether `text` holds what the assistant says last; a conversation in which it says nothing in words counts as held."""
        index = next(
            (place for place in reversed(range(len(self.turns))) if self._is_said(place) and _words(self.turns[place])), None
        )
        if index is None or _words(self.turns[index]).strip() in self.text:
            return True
        return self._changed(self.turns, index, self.text, [{"content": _marked(self.turns[index])}]) is not None

    def holds_calls(self) -> bool:
        """Whether `text` holds what the assistant calls last, as where a template writes that in place of what is said with it."""
        index = max((place for place in range(len(self.turns)) if self._is_said(place)), default=None)
        parts = [] if index is None else [part for part in _variants(self.turns[index]) if "tool_calls" in part]
        return index is not None and self._changed(self.turns, index, self.text, parts) is not None

    def refuse_lost_calls(self) -> None:
        """Raises SettingsError where the assistant calls tools and the template does not write it."""
        called = [turn for turn in self.turns if turn.get("tool_calls")]
        silent = [{name: value for name, value in turn.items() if name != "tool_calls"} for turn in self.turns]
        if called and self.rendered(silent) == self.text:
            raise SettingsError(
                "The chat template of this tokenizer leaves out the tools that the assistant calls; take a model that was trained to call "
                "tools, or leave such conversations out."
            )

    def is_open(self, end: int) -> bool:
        """Whether nothing says at `end` that the turn before it is over."""
        return not self.text[:end].rstrip().endswith(self.ends)

    @cached_property
    def calling(self) -> str:
        """What calls for the assistant's turn after a user's; empty where the template has no such words."""
        without, with_it = self.rendered(self._exchange[:1]), self.rendered(self._exchange[:1], add_generation_prompt=True)
        return with_it[len(without) :] if without and with_it and with_it.startswith(without) else ""

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The special tokens, the longest first, and with them what follows an answer where the tokenizer calls that token none."""
        return tuple(sorted({*_special(self.tokenizer), self.ending} - {""}, key=len, reverse=True))

    @cached_property
    def ending(self) -> str:
        """The token that follows an answer; empty where none does."""
        answered = (self.rendered(self._exchange) or "").rpartition(MARK)[2].lstrip()
        added = (str(token) for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values())
        return max((token for token in added if token and answered.startswith(token)), key=len, default="")

    @cached_property
    def behind(self) -> str:
        """What a template writes behind an answer's end of text, where that is the end of a conversation."""
        eos = self.tokenizer.eos_token
        return (self.rendered(self._exchange) or "").rpartition(MARK)[2].partition(eos)[2].strip() if eos else ""

    @property
    def _exchange(self) -> list[dict]:
        """A question and an answer, in the form that this conversation has."""
        turns = [{"role": "user", "content": MARK}, {"role": ASSISTANT, "content": MARK}]
        return turns if isinstance(self.turns[0]["content"], str) else _in_parts(turns)

    # -- a turn that the text up to it does not tell the place of ----------------------------------------------------------------

    def _found(self, index: int, begin: int | None, end: int | None) -> list[tuple[int, int]]:
        """As of `said`, by what changes with the turn. begin, end: as far as they are known."""
        turn = self.turns[index]
        parts = list(_variants(turn))
        silent = {"content": _marked(turn), "tool_calls": None}
        first = self._changed(self.turns, index, self.text, [{"content": _marked(turn)}, silent, *parts])
        last = self._changed(self.turns, index, self.text, parts)
        if first is None and begin is None:
            return []
        begin = first[0] if begin is None and first else begin or 0
        if end is None or end <= begin:
            if last is None:
                return []
            end = self._end_after(index, last[1], parts)
        return self._without_others(index, begin, end, parts)

    def _changed(self, turns: Turns, index: int, text: str, changes: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
        """What of `text`, that of `turns`, changes with turn `index`: from the first to the last of it; None where nothing does."""
        found = []
        for change in changes:
            changed = {name: value for name, value in {**turns[index], **change}.items() if value is not None}
            other = self.rendered([*turns[:index], changed, *turns[index + 1 :]])
            if other is not None and other != text and MARK.lower() in other.lower():
                begin = _alike(text, other)
                found.append((begin, len(text) - _alike(text[begin:][::-1], other[begin:][::-1])))
        return (min(begin for begin, _ in found), max(end for _, end in found)) if found else None

    def _end_after(self, index: int, last: int, parts: Sequence[Mapping[str, Any]]) -> int:
        """Where turn `index` ends, whose own words end at `last`: behind what follows them where the conversation ends with the turn, such
        as the end of a call, but for a last token that is another one there."""
        turns = self.turns[: index + 1]
        through = self.rendered(turns)
        own = self._changed(turns, index, through, parts) if through is not None else None
        tail = through[own[1] :].rstrip() if through is not None and own else ""
        token = next((token for token in self.ends if tail.endswith(token)), "")
        for known in (tail, tail.removesuffix(token).rstrip()):
            if known and self.text.startswith(known, last):
                return last + len(known)
        return last

    def _without_others(self, index: int, begin: int, end: int, parts: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """`begin` to `end` without the answers of tools that the template puts between what the turn calls and what it says. What is before
        them ends with the token that calls for them."""
        after = index + 1
        while after < len(self.turns) and not self._is_said(after):
            after += 1
        others = [
            self._changed(self.turns, place, self.text, [{"content": _marked(self.turns[place])}])
            for place in range(index + 1, after)
        ]
        own = sorted(
            (*found, number)
            for number, part in enumerate(parts)
            if (found := self._changed(self.turns, index, self.text, [part]))
        )
        pieces, here = [], begin
        for (_, earlier, number), (later, *_) in pairwise(own):
            if any(other and earlier <= other[0] and other[1] <= later for other in others):
                pieces.append((here, self._cut_off(index, earlier, parts[number])))
                here = later
        return [*pieces, (here, end)]

    def _cut_off(self, index: int, place: int, part: Mapping[str, Any]) -> int:
        """Where a piece of turn `index` ends whose words of `part` end at `place`: as far as the text is as where the conversation ends with
        the turn, in whole tokens, and with the token that ends it there."""
        turns, tokens = self.turns[: index + 1], self.ends
        through = (self.rendered(turns) or "").rstrip()
        own = self._changed(turns, index, through, [part])
        end = place + _alike(self.text[place:], through[own[1] :] if own else "")
        for token in tokens:
            start = self.text.find(token, max(place, end - len(token) + 1), end + len(token) - 1)
            if 0 <= start < end < start + len(token):
                end = start
                break
        last = next((token for token in tokens if through.endswith(token)), "")
        return end + len(last) if last and self.text.startswith(last, end) else end

    def _with_its_end(self, place: int) -> int:
        """`place`, or where the special token ends that follows it but for spaces; one that begins what calls for the next turn is none."""
        rest = self.text[place:].lstrip()
        if self.calling and rest.startswith(self.calling):
            return place
        token = next((token for token in self.ends if rest.startswith(token)), "")
        is_begin = token == self.tokenizer.bos_token != self.tokenizer.eos_token
        return len(self.text) - len(rest) + len(token) if token and not is_begin else place

    def _without_what_follows(self, begin: int, end: int) -> int:
        """`end` without what follows the token that ends a turn: nothing is written there any more. That is white space, an end of the
        whole text behind it, and the words that call for a next turn, where the template writes them unasked."""
        here = self.text[begin:end].rstrip().removesuffix(self.behind)
        words = here.rstrip()
        last = len(words) if words.endswith(self.ends) else end - begin
        while token := next((token for token in self.ends if words.endswith(token)), ""):
            spaced = here[len(words) :][:1].isspace()
            last = len(words) if token == self.tokenizer.eos_token or (spaced and token == self.ending) else last
            words = words.removesuffix(token).rstrip()
        return begin + last

    def _is_called_again(self, index: int, place: int) -> bool:
        """Whether the words that call for a turn stand at `place` though the turn began before: after a tool's answer, in some templates."""
        calling = self.calling
        return bool(calling) and self.text.startswith(calling, place) and not _words(self.turns[index]).startswith(calling)

    def _is_said(self, index: int) -> bool:
        return self.turns[index]["role"] == ASSISTANT

    def rendered(self, turns: Turns, **options: Any) -> str | None:
        """What the template makes of part of a conversation; None where it takes only whole ones."""
        try:
            return _rendered(self.tokenizer, turns, self.tools, **options)
        except SettingsError:
            return None


def _as_held(tokenizer: Any, turns: list[dict], tools: list[dict] | None) -> _Chat:
    """The conversation as the template reads it: contents are texts, or parts of type text where it takes those alone, as those of models
    that see pictures do; arguments of calls are records, or JSON where it takes that alone. Raises SettingsError."""
    forms = [turns, _in_parts(turns)]
    if any(turn.get("tool_calls") for turn in turns):
        forms += [_with_written_arguments(form) for form in forms]
    silent = []
    for form in forms:
        text = _Chat(tokenizer, form, tools, "").rendered(form)
        if text is not None:
            chat = _Chat(tokenizer, form, tools, text)
            if chat.holds_words():
                return chat
            silent.append(chat)
    for chat in silent:
        if chat.holds_calls():
            return chat
    _rendered(tokenizer, turns, tools)  # which says why, where it refuses
    raise SettingsError("The chat template of this tokenizer leaves out what the assistant says; there is nothing to learn.")


def _in_parts(turns: Turns) -> list[dict]:
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def _with_written_arguments(turns: Turns) -> list[dict]:
    return [
        {**turn, "tool_calls": _with_arguments(turn["tool_calls"], lambda given: given if isinstance(given, str) else json.dumps(given))}
        if isinstance(turn.get("tool_calls"), list)
        else dict(turn)
        for turn in turns
    ]  # fmt: skip


def _with_arguments(calls: Sequence[Any], change: Any) -> list[Any]:
    """`calls` of tools with ``change(arguments)`` as their arguments, where they have some; OpenAI's form and the bare one."""
    found = []
    for call in calls:
        inside = call.get("function", call) if isinstance(call, Mapping) else {}
        if isinstance(inside, Mapping) and "arguments" in inside:
            inside = {**inside, "arguments": change(inside["arguments"])}
            call = {**call, "function": inside} if "function" in call else inside
        found.append(call)
    return found


def _variants(turn: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of what the turn says, thinks and calls tools with, each by itself; of a turn that says nothing, not of that."""
    calls = turn.get("tool_calls")
    if _words(turn) or not calls:
        yield {"content": _marked(turn)}
    yield from ({name: MARK} for name in THOUGHTS if turn.get(name))
    calls = calls if isinstance(calls, list) else []
    for place in range(len(calls)):
        yield {
            "tool_calls": [*calls[:place], *_with_arguments(calls[place : place + 1], _other_arguments), *calls[place + 1 :]]
        }


def _other_arguments(given: object) -> object:
    return json.dumps({MARK: MARK}) if isinstance(given, str) else {MARK: MARK}


def _words(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _marked(turn: Mapping[str, Any]) -> str | list[dict]:
    """Another content for `turn`, which begins and ends otherwise."""
    said = _words(turn)
    mark = MARK if not said or (said[0] != MARK[0] and said[-1] != MARK[-1]) else MARK.lower()
    return mark if isinstance(turn["content"], str) else [{"type": "text", "text": mark}]


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


def _rendered(tokenizer: Any, turns: Turns, tools: list[dict] | None, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(turns), tools=tools, tokenize=False, **options))
    except (TemplateError, TypeError, ValueError) as error:  # a template's own refusal, or a turn that it cannot read
        said = str(error).rstrip(".")
        roles = ", ".join(turn["role"] for turn in turns)
        raise SettingsError(f"The tokenizer's chat template refuses a conversation of {roles}: {said}.") from None
