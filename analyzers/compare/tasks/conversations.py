"""Conversations as other people's files hold them, as the turns that a chat template reads.

Understood are ``role`` and ``content`` (OpenAI, TRL), ``from`` and ``value`` (ShareGPT), content in parts of type text, calls of tools
beside or in place of a content, and prompts and completions that are lists of turns themselves (TRL's conversational form).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from analyzers.compare.tasks.base import Example
from loraxs_core.errors import SettingsError

ASSISTANT = "assistant"
CALLED = {"human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT, "observation": "tool"}
# What templates of models that call tools or think aloud read beside role and content.
CARRIED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")


def conversation(given: Any, where: str) -> Example:
    """The example in a list of turns: it ends with the assistant's last, and all of the assistant's are learnt.

    where: the source and row, for SettingsError, which says what is lacking.
    """
    return _example(turns(given, where), 0, where)


def answered_conversation(prompt: Any, completion: Any, where: str) -> Example:
    """The example in a prompt and a completion of which one at least is a list of turns: only the completion's are learnt."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else turns(prompt, where)
    after = [{"role": ASSISTANT, "content": completion}] if isinstance(completion, str) else turns(completion, where)
    return _example([*before, *after], len(before), where)


def with_tools(example: Example, given: Any, where: str) -> Example:
    """`example` with the tools that its assistant may call: a list of their descriptions, or one as JSON. Raises SettingsError."""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError:
            raise SettingsError(f"{where}: the tools are no JSON.") from None
    if not given:
        return example
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise SettingsError(f"{where}: the tools have to be a list of their descriptions.")
    return dataclasses.replace(example, tools=tuple(without_gaps(tool) for tool in given))


def without_gaps(given: Any) -> Any:
    """`given` without the entries that are null: a table gives every row the entries of all others, and a template would write them."""
    if isinstance(given, Mapping):
        return {name: without_gaps(value) for name, value in given.items() if value is not None}
    return [without_gaps(value) for value in given] if isinstance(given, list) else given


def turns(given: Any, where: str) -> list[dict[str, Any]]:
    """Turns of role, content and what a tool is called with, whatever names they had. Raises SettingsError."""
    return [_turn(one, where) for one in (given if isinstance(given, list) else [])]


def _turn(given: Any, where: str) -> dict[str, Any]:
    given = given if isinstance(given, Mapping) else {}
    role = given.get("role", given.get("from"))
    carried = {name: without_gaps(given[name]) for name in CARRIED if given.get(name)}
    if isinstance(carried.get("tool_calls"), list):
        carried["tool_calls"] = [_with_arguments(call) for call in carried["tool_calls"]]
    content = _content(given.get("content", given.get("value")), where)
    if content is None and "tool_calls" in carried:
        content = ""
    if not isinstance(role, str) or content is None:
        raise SettingsError(f"{where}: each of the messages needs a role and a content, both text.")
    return {"role": CALLED.get(role, role), "content": content, **carried}


def _with_arguments(call: Any) -> Any:
    """A call of a tool with its arguments as a record, as templates read them; OpenAI's files hold them as text."""
    inside = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(inside, Mapping) or not isinstance(inside.get("arguments"), str):
        return call
    try:
        arguments = json.loads(inside["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**inside, "arguments": arguments}} if isinstance(arguments, dict) else call


def _content(given: Any, where: str) -> str | None:
    """A text, or the texts of a content in parts one after the other; None for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return given if isinstance(given, str) else None
    other = next(
        (str(part.get("type")) for part in given if isinstance(part, Mapping) and part.get("type", "text") != "text"), None
    )
    if other is not None:
        raise SettingsError(f"{where}: a message holds a part of type {other!r}; only text can be trained on here.")
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in given]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if known and len(known) == len(texts) else None


def _example(found: list[dict[str, Any]], learnt: int, where: str) -> Example:
    last = max((index for index, turn in enumerate(found) if turn["role"] == ASSISTANT), default=-1)
    if last < learnt:
        raise SettingsError(f"{where}: no message is the assistant's, so there is nothing to learn.")
    before = "\n".join(turn["content"] for turn in found[:last])
    return Example(before, answer=found[last]["content"], messages=tuple(found[: last + 1]), learnt_from=learnt)
