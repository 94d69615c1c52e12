"""A model of PyTorch's CUDA caching allocator: from births and deaths of blocks to reserved memory.

Follows `c10/cuda/CUDACachingAllocator.cpp` with default settings: sizes rounded to 512 bytes; requests up to 1 MiB come from
2 MiB segments, larger ones below 10 MiB from 20 MiB segments, the rest from segments rounded up to 2 MiB; best fit; a block is
split when what remains is worth keeping; freed neighbours merge; segments are given back by `empty_cache`, and where the GPU is full:
then all free segments are given back and the request is made again before it fails. With expandable segments small and large
blocks lie in one segment each, which grows by pages at its end and gives free pages back.
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


class OutOfMemory(Exception):
    """The request does not fit the GPU, nor would it with an empty cache."""


class CachingAllocator:
    """Bytes allocated (in blocks handed out) and reserved (in segments held) after each request.

    capacity: bytes that segments may take together; None: any number. expandable: with expandable segments.
    """

    def __init__(self, *, capacity: int | None = None, expandable: bool = False):
        self.capacity = capacity
        self.expandable = expandable
        self.allocated = 0
        self.reserved = 0
        self.peak_reserved = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._last: dict[bool, Block | None] = {True: None, False: None}  # at the end of an expandable segment
        self._next_address = 0

    def malloc(self, size: int) -> Block:
        """A block of at least `size` bytes. Raises OutOfMemory where the capacity does not hold it."""
        size = max(ROUND, -(-size // ROUND) * ROUND)
        small = size <= SMALL_REQUEST
        block = self._best_fit(size, small) or (self._grown(size, small) if self.expandable else self._segment(size, small))
        remaining = block.size - size
        if remaining >= ROUND if small else remaining > SMALL_REQUEST:
            self._keep(self._split(block, size))
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
                elif self._last[first.small] is second:
                    self._last[first.small] = first
                block = first
        block.free = True
        self._keep(block)

    def empty_cache(self) -> None:
        """Gives free segments, or the free pages of expandable ones, back, as ``torch.cuda.empty_cache()`` does."""
        for small, pool in self._free.items():
            for length, _, block in list(pool):
                if self.expandable:
                    given = length - length % (SMALL_SEGMENT if small else LARGE_SEGMENT)
                    if not given:
                        continue
                    self._drop(block)
                    if length > given:
                        self._keep(self._split(block, given))
                    block.free = False  # its addresses are not used again, nor merged with others
                elif block.before is None and block.after is None:
                    given = length
                    self._drop(block)
                else:
                    continue
                self.reserved -= given

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
        self._reserve(length)
        block = Block(self._next_address, length, small)
        self._next_address += length
        return block

    def _grown(self, size: int, small: bool) -> Block:
        """The free block at the end of the expandable segment, after the segment has grown by the pages that are missing."""
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        last = self._last[small]
        missing = size - (last.size if last is not None and last.free else 0)
        length = -(-missing // page) * page
        if self._is_full(length):
            self.empty_cache()  # which takes the end too, so that whole pages are asked for
            length = -(-size // page) * page
            last = self._last[small]
        self._reserve(length)
        if last is not None and last.free and last.size + length >= size:
            self._drop(last)
            last.size += length
            return last
        block = Block(self._next_address, length, small, before=last)
        self._next_address += 2**48
        if last is not None:
            last.after = block
        self._last[small] = block
        return block

    def _is_full(self, length: int) -> bool:
        return self.capacity is not None and self.reserved + length > self.capacity

    def _reserve(self, length: int) -> None:
        if self._is_full(length):
            self.empty_cache()
            if self._is_full(length):
                raise OutOfMemory
        self.reserved += length
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def _split(self, block: Block, size: int) -> Block:
        """What remains of `block` behind its first `size` bytes, free."""
        rest = Block(block.address + size, block.size - size, block.small, before=block, after=block.after, free=True)
        if rest.after:
            rest.after.before = rest
        elif self._last[block.small] is block:
            self._last[block.small] = rest
        block.after, block.size = rest, size
        return rest

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


def replay(
    sizes: Sequence[int],
    events: Iterable[int],
    *,
    empty_cache_at: Container[int] = (),
    expandable: bool = False,
    capacity: int | None = None,
) -> Replay:
    """Runs births (block numbers) and deaths (their complements) through the allocator.

    sizes: bytes by block number. empty_cache_at: positions in the events before which the program empties the cache. expandable,
    capacity: see `CachingAllocator`. Raises OutOfMemory where the capacity does not hold them.
    """
    allocator = CachingAllocator(capacity=capacity, expandable=expandable)
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


def least_capacity(
    sizes: Sequence[int],
    events: Sequence[int],
    played: Replay,
    *,
    empty_cache_at: Container[int] = (),
    expandable: bool = False,
) -> int:
    """The smallest capacity in bytes, to 1 %, with which `played` still runs: less than its reserved peak, since an allocator that
    meets the end of the GPU first gives back what it holds in vain."""
    low, high = played.peak_allocated, played.peak_reserved
    while high - low > high // 100:
        middle = (low + high) // 2
        try:
            high = replay(sizes, events, empty_cache_at=empty_cache_at, expandable=expandable, capacity=middle).peak_reserved
        except OutOfMemory:
            low = middle
    return high
