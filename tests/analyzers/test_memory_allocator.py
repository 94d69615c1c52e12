"""The model of PyTorch's caching allocator, against its documented constants."""

import random
from itertools import pairwise

from analyzers.memory.allocator import CachingAllocator, replay
from analyzers.units import MIB


def test_sizes_are_rounded_to_512_bytes():
    played = replay([1, 513], [0, 1])
    assert played.peak_allocated == 512 + 1024
    assert played.peak_reserved == 2 * MIB


def test_segments_by_size_of_the_request():
    for size, reserved in (
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 1024, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
    ):
        assert replay([size], [0]).peak_reserved == reserved


def test_a_remainder_of_up_to_1_mib_stays_with_a_large_block():
    allocator = CachingAllocator()
    allocator.release(allocator.malloc(12 * MIB))
    allocator.malloc(11 * MIB)
    assert allocator.allocated == 12 * MIB
    assert allocator.reserved == 12 * MIB


def test_freed_neighbours_merge_and_are_used_again():
    allocator = CachingAllocator()
    first, second, third = (allocator.malloc(4 * MIB) for _ in range(3))
    allocator.release(first)
    allocator.release(third)
    allocator.release(second)
    allocator.malloc(20 * MIB)
    assert allocator.reserved == 20 * MIB


def test_the_smallest_block_that_fits_is_taken():
    allocator = CachingAllocator()
    small, large = allocator.malloc(12 * MIB), allocator.malloc(40 * MIB)
    allocator.release(small)
    allocator.release(large)
    allocator.malloc(12 * MIB)
    allocator.malloc(40 * MIB)
    assert allocator.reserved == 52 * MIB


def test_emptying_the_cache_gives_back_whole_segments_only():
    allocator = CachingAllocator()
    kept, gone = allocator.malloc(2 * MIB), allocator.malloc(30 * MIB)
    allocator.release(gone)
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB
    assert allocator.peak_reserved == 50 * MIB
    allocator.release(kept)
    allocator.empty_cache()
    assert allocator.reserved == 0


def test_a_long_random_history_keeps_its_books():
    rng = random.Random(0)
    allocator = CachingAllocator()
    held = []
    for _ in range(3000):
        if held and rng.random() < 0.5:
            allocator.release(held.pop(rng.randrange(len(held))))
        else:
            held.append(allocator.malloc(int(2 ** rng.uniform(0, 26))))
        assert allocator.allocated == sum(block.size for block in held) <= allocator.reserved
    spans = sorted((block.address, block.address + block.size) for block in held)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for block in held:
        allocator.release(block)
    allocator.empty_cache()
    assert allocator.reserved == allocator.allocated == 0
