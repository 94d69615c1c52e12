"""A model of PyTorch's CUDA caching allocator: from births and deaths of blocks to reserved memory.

Follows `c10/cuda/CUDACachingAllocator.cpp` with default settings: sizes rounded to 512 bytes; requests up to 1 MiB come from
2 MiB segments, larger ones below 10 MiB from 20 MiB segments, the rest from segments rounded up to 2 MiB; best fit; a block is
split when what remains is worth keeping; freed neighbours merge; segments are
given back only by `empty_cache`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from analyzers.units import MIB

ROUND = 512
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE_REQUEST = 10 * MIB
LARGE_ROUND = 2 * MIB


@dataclass(slots=True)
class Block:
    address: int
    size: int
    small: bool
    before: Block | None = None
    after: Block | None = None
    free: bool = False


class CachingAllocator:
    """Bytes allocated (in blocks handed out) and reserved (in segments held) after each request."""

    def __init__(self):
        self.allocated = 0
        self.reserved = 0
        self.peak_reserved = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._next_address = 0

    def malloc(self, size: int) -> Block:
        """A block of at least `size` bytes."""
        size = max(ROUND, -(-size // ROUND) * ROUND)
        small = size <= SMALL_REQUEST
        block = self._best_fit(size, small) or self._segment(size, small)
        remaining = block.size - size
        if remaining >= ROUND if small else remaining > SMALL_REQUEST:
            rest = Block(block.address + size, remaining, small, before=block, after=block.after, free=True)
            if rest.after:
                rest.after.before = rest
            block.after, block.size = rest, size
            self._keep(rest)
        block.free = False
        self.allocated += block.size
        return block

    def release(self, block: Block) -> None:
        """Gives `block` back to the cache and merges it with its free neighbours."""
        self.allocated -= block.size
        block.free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._drop(neighbour)
                first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
                first.size += second.size
                first.after = second.after
                if first.after:
                    first.after.before = first
                block = first
        block.free = True
        self._keep(block)

    def empty_cache(self) -> None:
        """Gives whole free segments back, as ``torch.cuda.empty_cache()`` does."""
        for pool in self._free.values():
            for entry in [entry for entry in pool if entry[2].before is None and entry[2].after is None]:
                pool.remove(entry)
                self.reserved -= entry[0]

    def _best_fit(self, size: int, small: bool) -> Block | None:
        free = self._free[small]
        at = bisect_left(free, (size, -1))
        return free.pop(at)[2] if at < len(free) else None

    def _segment(self, size: int, small: bool) -> Block:
        if small:
            length = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            length = LARGE_SEGMENT
        else:
            length = -(-size // LARGE_ROUND) * LARGE_ROUND
        block = Block(self._next_address, length, small)
        self._next_address += length
        self.reserved += length
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _keep(self, block: Block) -> None:
        insort(self._free[block.small], (block.size, block.address, block))

    def _drop(self, block: Block) -> None:
        free = self._free[block.small]
        del free[bisect_left(free, (block.size, block.address))]


@dataclass(frozen=True)
class Replay:
    """Peaks of a recording in bytes. allocated: after each event. rounded: what each block took, by its number."""

    peak_allocated: int
    peak_reserved: int
    allocated: list[int]
    rounded: list[int]


def replay(sizes: Sequence[int], events: Iterable[int], *, empty_cache_at: Container[int] = ()) -> Replay:
    """Runs births (block numbers) and deaths (their complements) through the allocator.

    sizes: bytes by block number. empty_cache_at: positions in the events before which the program empties the cache.
    """
    allocator = CachingAllocator()
    blocks: dict[int, Block] = {}
    allocated: list[int] = []
    rounded = [0] * len(sizes)
    for position, event in enumerate(events):
        if position in empty_cache_at:
            allocator.empty_cache()
        if event >= 0:
            blocks[event] = block = allocator.malloc(sizes[event])
            rounded[event] = block.size
        else:
            allocator.release(blocks.pop(~event))
        allocated.append(allocator.allocated)
    return Replay(max(allocated, default=0), allocator.peak_reserved, allocated, rounded)
