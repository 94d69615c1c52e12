"""Fuzzing with our own mutators: documents and bytes damaged by number, and cases run where a hang or a crash is seen from outside.

Every case is a function of a module that takes its number first and draws from it alone, so that a failure can be repeated by its
number. It returns a word for what came out and raises AssertionError for what must not be.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection

import pytest

from loraxs_core.errors import WorkbenchError
from loraxs_core.unseen import written_out
from tests.kills import context, started

SECONDS = 10.0  # by the clock on the wall: a process that waits for a pipe takes no processor time
FIRST_SECONDS = 120.0  # of the first case of a process, which imports what the others use
GROWTH = 512 << 20  # bytes; more means that something of the size a file claims was made
NUMBER = 500

LONG = "9" * 400
JUNK: tuple = (
    None, True, False, 0, 1, -1, 2, 3.0, 2.5, -0.0, 1e-320, 1e308, -1e308, 10**19, 10**400, int("9" * 4000), float("nan"), float("inf"),
    "", " ", "x", "1", "0x10", "١", "a\nb", "a\x00b", "\x1b[31mred", "\u202eright", "\ud800", "![x](http://evil.example)", "=cmd()",
    "../x", "CON", "x" * 100_000, [], [1], ["a"], [None], [[]], [1, 2, 3], {}, {"a": 1}, {"": None}, [["a"] * 50] * 50,
)  # fmt: skip


def some(total: int = NUMBER, quick: int = 12, blocks: int = 4) -> pytest.MarkDecorator:
    """Parametrises `numbers`: a few cases for every run of the tests, all of them in the slow ones."""
    size = -(-total // blocks)
    many = [
        pytest.param(
            range(start, min(start + size, total)), marks=pytest.mark.slow, id=f"{start}-{min(start + size, total) - 1}"
        )
        for start in range(0, total, size)
    ]
    return pytest.mark.parametrize("numbers", [pytest.param(range(quick), id="quick"), *many])


def one_sentence(error: BaseException, kind: type[WorkbenchError] = WorkbenchError) -> None:
    """Raises AssertionError unless `error` is of the project's own `kind` and says it in one short line with a full stop."""
    said = str(error)
    assert isinstance(error, kind), f"{type(error).__name__}: {said[:300]}"
    assert "\n" not in said, said[:500]
    assert said == written_out(said), repr(said[:500])
    assert len(said) < 1500, f"{len(said)} characters: {said[:300]}"
    assert said.rstrip().endswith("."), said[-300:]


def commanded(words: list[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `loraxs` with these words, in this process.

    Raises AssertionError unless it answered (with one JSON document of finite numbers, where ``--json`` asks for one) or refused with
    exit code 2 and one sentence as its last line.
    """
    from app.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code or 0
    said = err.getvalue()
    assert "Traceback" not in said, said[-3000:]
    assert code in (0, 2), (code, said[-3000:])
    if code:
        last = said.rstrip().splitlines()[-1]
        assert last.startswith("loraxs: "), said[-1000:]
        one_sentence(WorkbenchError(last.removeprefix("loraxs: ")))
    elif "--json" in words:
        json.loads(out.getvalue(), parse_constant=_not_finite)
    return code, out.getvalue(), said


def _not_finite(word: str) -> None:
    raise AssertionError(f"{word} is no number of JSON's")


# -- mutators -----------------------------------------------------------------------------------------------------------------


def mutated_bytes(sound: bytes, draw: random.Random) -> bytes:
    """`sound` with bits flipped, bytes lost, repeated, exchanged or put in, or as another encoding would have it."""
    data = bytearray(sound)
    at = draw.randrange(len(data)) if data else 0
    end = min(len(data), at + draw.choice((1, 2, 16, 300)))
    match draw.randrange(10):
        case 0:
            data[at : at + 1] = bytes([data[at] ^ (1 << draw.randrange(8))]) if data else b"x"
        case 1:
            for _ in range(draw.choice((2, 10, 100))):
                data[draw.randrange(len(data))] = draw.randrange(256)
        case 2:
            del data[at:]
        case 3:
            del data[at:end]
        case 4:
            data[at:at] = data[at:end]
        case 5:
            data[at:at] = draw.choice(
                (b"\0", b"\xff", b"\r", b"\n", b'"', b",", b"\\", b"\xef\xbb\xbf", b"\xc3", b"9" * 5000, b"[" * 100_000)
            )
        case 6:
            data = bytearray(
                draw.choice((b"", b" ", b"null", b"[]", b"{}", b"7", b"PK\x03\x04" * 9, b"\xff\xfe", b"\0" * 4096))
            )
        case 7:
            text = bytes(data).decode("utf-8", errors="replace")
            data = bytearray(text.encode(draw.choice(("utf-16", "utf-8-sig", "utf-32-le", "latin-1")), errors="replace"))
        case 8:
            other = draw.randrange(len(data))
            data[at], data[other] = data[other], data[at]
        case 9:
            data += draw.choice((bytes(data[at:]), b"\0", b"x" * 1000, b"\n\n"))
    return bytes(data)


def mutated_json(document: dict, draw: random.Random) -> dict:
    """A copy of `document` with one or a few values of it replaced, lost, doubled, renamed or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        _mutate(document, draw)
    return document


def dumped(document: object, draw: random.Random) -> bytes:
    """`document` as JSON text; sometimes with a key written twice, or nested without end."""
    text = json.dumps(document)
    match draw.randrange(12):
        case 0:
            keys = [key for key in document if isinstance(key, str)] if isinstance(document, dict) else []
            if keys:
                text = text[:-1] + f", {json.dumps(draw.choice(keys))}: {json.dumps(draw.choice(JUNK[:20]))}}}"
        case 1:
            text = text.replace("null", "[" * draw.choice((50, 100_000)), 1)
    return text.encode("utf-8", errors="surrogatepass")


def _mutate(document: dict, draw: random.Random) -> None:
    places = list(_places(document))
    if not places:
        document["x"] = copy.deepcopy(draw.choice(JUNK))
        return
    inside, key = draw.choice(places)
    match draw.randrange(8):
        case 0 | 1 | 2:
            inside[key] = copy.deepcopy(draw.choice(JUNK))  # a later step may change it
        case 3:
            del inside[key]
        case 4:  # a neighbour of what was there
            inside[key] = _near(inside[key], draw)
        case 5:  # by another name
            if isinstance(inside, dict):
                inside[draw.choice((f"{key}x", key.upper(), f" {key}", "", "x" * 10_000, f"{key}\n\x1b[2J"))] = inside.pop(key)
            else:
                inside.append(copy.deepcopy(inside[key]))
        case 6:
            other, place = draw.choice(places)
            if other is inside or not _holds(inside[key], other):
                inside[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else other[place])
        case 7:
            inside[key] = [inside[key]] if draw.random() < 0.5 else str(inside[key])


def _near(value: object, draw: random.Random) -> object:
    if isinstance(value, bool) or value is None:
        return draw.choice((0, 1, "true", "null", not value))
    if isinstance(value, int) and abs(value) > 1e300:  # beyond what a float holds
        return draw.choice((value + 1, -value, value * 10, str(value)))
    if isinstance(value, int | float):
        return draw.choice((value + 1, value - 1, -value, value * 10, value + 0.5, float(value), str(value), value * 10**12))
    if isinstance(value, str):
        return draw.choice((value[:-1], value + " ", value.upper(), value + value, value[::-1], f"{value}\n", f"{value}.x"))
    if isinstance(value, list):
        return draw.choice((value[:-1], value + value, value[::-1], dict(enumerate(map(str, value)))))
    return draw.choice(([value], list(value), {}))


def _places(value: object) -> Iterable[tuple]:
    """(the object or list, the key or position) of everything inside `value`."""
    entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def _holds(value: object, wanted: object) -> bool:
    return value is wanted or any(inside is wanted for inside, _ in _places(value))


# -- where cases run ----------------------------------------------------------------------------------------------------------


def survived(case: Callable[..., str], numbers: Iterable[int], *arguments: object, seconds: float = SECONDS) -> Counter:
    """Runs ``case(number, *arguments)`` for each number in a process of its own; how often each word came out.

    No alarm interrupts the case: the process is watched, and ended, from outside. Raises AssertionError naming the numbers
    that raised, took more than `seconds` by the clock, ended the process, or made it grow by `GROWTH`.
    """
    left, wrong, found = list(numbers), [], Counter()
    while left:
        left = left[_watched(case, left, arguments, seconds, found, wrong) :]
    assert not wrong, f"{len(wrong)} cases of {case.__name__} failed:\n" + "\n".join(wrong[:10])
    return found


def _watched(case: Callable, numbers: list[int], arguments: tuple, seconds: float, found: Counter, wrong: list[str]) -> int:
    """One process's work: how many of `numbers` are settled, the one that ended it included."""
    receiver, sender = context().Pipe(duplex=False)
    process = started(_run, case, numbers, arguments, dict(os.environ), sender)
    sender.close()
    settled, patience = 0, FIRST_SECONDS
    try:
        for number in numbers:
            settled += 1
            if not receiver.poll(patience):
                wrong.append(f"{number}: no answer after {patience:g} s")
                break
            try:
                word, failure = receiver.recv()
            except EOFError:
                process.join(10)
                wrong.append(f"{number}: the process ended with {process.exitcode}")
                break
            patience = seconds
            if failure:
                wrong.append(f"{number}: {failure}")
            else:
                found[word] += 1
    finally:
        process.kill()
        process.join()
        receiver.close()
    return settled


def _run(case: Callable, numbers: list[int], arguments: tuple, environment: dict, sender: Connection) -> None:
    os.environ.update(environment)
    started = None
    for number in numbers:
        try:
            word, failure = case(number, *arguments), ""
        except BaseException:
            word, failure = "", traceback.format_exc(limit=-8)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started = grown if started is None else started
        if grown - started > GROWTH:
            failure, started = failure or f"memory grew by {(grown - started) >> 20} MiB", grown
        sender.send((word, failure))
