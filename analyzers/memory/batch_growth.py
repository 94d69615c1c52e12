"""Recordings of one fine-tune at several batches, from the third on worked out from two.

A batch is how many sequences go through a step side by side: it changes what operators run on, not which ones run. So the size of
every block is a fixed part and a part for each sequence, and two recordings tell both. It is checked, not assumed: the two must
have the same births, deaths, layers and places in the program, every block the same whole number of bytes more for each sequence,
and none a fixed part below nothing, which one that grows faster than the batch would have. What cannot be told from two is
recorded. A single sequence is left out: its layout needs fewer copies.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyzers.memory import cache
from analyzers.memory.kernels import embedding_sorts
from analyzers.memory.trace import Trace
from analyzers.memory.training_step import record_steps

if TYPE_CHECKING:
    from analyzers.memory.settings import MemorySettings
    from analyzers.methods import AdapterSpec
    from loraxs_core.checkpoint import Checkpoint

MOST_EVENTS = 400_000  # of all recordings kept, some 50 MB; those not asked about for longest go first


@dataclass(frozen=True)
class _Kept:
    """A recording at one batch. growth: bytes of each block more for each sequence; None while there is no second recording, or
    where two did not agree."""

    batch: int
    trace: Trace
    growth: tuple[int, ...] | None = None

    def at(self, batch: int) -> Trace:
        more = batch - self.batch
        sizes = [size + more * each for size, each in zip(self.trace.sizes, self.growth, strict=True)]
        return replace(self.trace, sizes=sizes)


_kept: OrderedDict[tuple, _Kept] = OrderedDict()
_lock = threading.Lock()


def recording(checkpoint: Checkpoint, settings: MemorySettings, adapter: AdapterSpec | Mapping | None) -> Trace:
    """What `record_steps` of the same arguments gives; not to be changed by who gets it."""
    if settings.batch == 1:
        return record_steps(checkpoint, settings, adapter)
    # The step is told by all of the settings but the batch, and by whether kernels that look at the number of tokens change over.
    question = cache.key(checkpoint, settings.but(batch=1, padding=settings.padded))
    key = question, embedding_sorts(settings.batch * settings.sequence)
    with _lock:
        known = _kept.get(key)
        if known:
            _kept.move_to_end(key)
    if known and known.growth is not None:
        return known.at(settings.batch)
    if known and known.batch == settings.batch:
        return known.trace
    trace = record_steps(checkpoint, settings, adapter)
    kept = _Kept(settings.batch, trace, _growth(known, settings.batch, trace) if known else None)
    with _lock:
        _kept[key] = kept
        _kept.move_to_end(key)
        while len(_kept) > 1 and sum(len(one.trace.events) for one in _kept.values()) > MOST_EVENTS:
            _kept.popitem(last=False)
    return trace


def forget() -> None:
    """Drops all recordings kept."""
    with _lock:
        _kept.clear()


def _growth(known: _Kept, batch: int, trace: Trace) -> tuple[int, ...] | None:
    """Bytes of each block more for each sequence, from `known` and the recording `trace` at another `batch`; None where the two do
    not differ by that alone."""
    if replace(trace, sizes=known.trace.sizes) != known.trace:
        return None
    between = batch - known.batch
    growth = []
    for one, other in zip(known.trace.sizes, trace.sizes, strict=True):
        each, rest = divmod(other - one, between)
        if rest or each < 0 or other - each * batch < 0:
            return None
        growth.append(each)
    return tuple(growth)
