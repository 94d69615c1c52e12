"""The GPU catalogue: every size from 8 to 192 GB, each with where its figure comes from."""

from __future__ import annotations

from analyzers.memory.gpus import GPUS, find_gpu
from analyzers.units import MIB


def test_every_card_says_where_its_memory_was_seen():
    for gpu in GPUS:
        assert len(gpu.source) > 20, gpu.name
        assert "https://" in gpu.source or "public repositories" in gpu.source, gpu.name
    assert find_gpu(24).source == ""


def test_the_catalogue_covers_8_to_192_gb():
    sizes = {gpu.gigabytes for gpu in GPUS}
    assert {8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141, 180, 192} <= sizes
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    assert [gpu.gigabytes for gpu in GPUS] == sorted(gpu.gigabytes for gpu in GPUS)


def test_drivers_report_a_little_less_than_the_name_or_a_power_of_two():
    for gpu in GPUS:
        assert 0.93 <= gpu.memory / (gpu.gigabytes * 1024 * MIB) <= 1.02, gpu.name
