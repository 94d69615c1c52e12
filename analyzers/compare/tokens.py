"""Texts as token ids, made once: later trials of the process find them in memory, later processes in the cache on disk.

An entry is found by the tokenizer's files, the texts themselves, the longest length and the versions of what tokenises; it holds ids alone.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from xxhash import xxh3_128

from loraxs_core.cache import Damaged, Kept

KEPT = Kept("tokens", ("analyzers",))
WORTH_KEEPING = 200_000  # characters; fewer are tokenised sooner than a file is read and checked
IN_MEMORY = 64 * 1024**2  # bytes, of the ids that were used last

_recent: OrderedDict[str, Tokens] = OrderedDict()


@dataclass(frozen=True)
class Tokens:
    """Texts as ids. columns: name -> (all,) int32, the texts' one after the other. ends: (n,), where each of them ends. cut: (n,), 1
    where a text was longer than allowed, as far as `make` says."""

    columns: Mapping[str, np.ndarray]
    ends: np.ndarray
    cut: np.ndarray

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Sequence[int]]], cut: Sequence[bool] | None = None) -> Tokens:
        """From lists of ids, which are of the same lengths in every column."""
        lengths = [len(text) for text in next(iter(columns.values()))]
        flat = {
            name: np.fromiter((one for text in texts for one in text), np.int32, count=sum(lengths))
            for name, texts in columns.items()
        }
        ends = np.cumsum(np.array(lengths, dtype=np.int64), dtype=np.int64)
        return cls(flat, ends, np.array(cut if cut is not None else [False] * len(lengths), dtype=np.int8))

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each text."""
        return np.diff(self.ends, prepend=0)

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values()) + self.ends.nbytes

    def text(self, index: int, name: str) -> list[int]:
        """Column `name` of one text."""
        return self.columns[name][self.ends[index] - self.lengths[index] : self.ends[index]].tolist()


def tokens(tokenizer: Any, texts: Sequence[Any], make: Callable[[], Tokens], *options: object) -> Tokens:
    """What `make` gives for `texts` (anything that JSON can hold), or gave for them before.

    tokenizer: one that was read from files, which `files_digest` was asked of (attribute ``files_digest``); of others nothing is kept.
    options: what else `make` depends on.
    """
    files = getattr(tokenizer, "files_digest", None)
    if files is None or not texts:
        return make()
    digest, characters = xxh3_128(), 0
    for text in texts:
        written = json.dumps(text, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
        characters += len(written)
        digest.update(f"{len(written)}:".encode() + written)
    versions = [version("transformers"), version("tokenizers")]
    key = KEPT.key(files, digest.hexdigest(), json.dumps([*versions, *options]))
    found = _recent.get(key)
    if found is None:
        found = _from_disk(key, make, tokenizer) if characters >= WORTH_KEEPING else make()
        _recent[key] = found
    _recent.move_to_end(key)
    while len(_recent) > 1 and sum(one.nbytes for one in _recent.values()) > IN_MEMORY:
        _recent.popitem(last=False)
    return found


def _from_disk(key: str, make: Callable[[], Tokens], tokenizer: Any) -> Tokens:
    found = KEPT.load(key, _decoded)
    if found is None:
        found = make()
        arrays = {**{f"column.{name}": column for name, column in found.columns.items()}, "ends": found.ends, "cut": found.cut}
        model = str(getattr(tokenizer, "model_name", ""))
        KEPT.save(key, arrays=arrays, model=model, what=f"{len(found):,} texts as token ids")
    return found


def _decoded(meta: dict, arrays: dict[str, np.ndarray]) -> Tokens:
    columns = {name.removeprefix("column."): value for name, value in arrays.items() if name.startswith("column.")}
    found = Tokens(columns, arrays["ends"], arrays["cut"])
    last = int(found.ends[-1])
    sound = all(len(column) == last for column in columns.values()) and len(found.cut) == len(found)
    if not columns or not sound or (np.diff(found.ends, prepend=0) < 0).any():
        raise Damaged("its lengths do not fit")
    return found
