"""Random numbers that are the same on every machine, for ever: a counter through a mixing function, nothing else.

The generators of NumPy and PyTorch may change their streams between versions; what an adapter on disk was checked against must
not. Every number here depends only on its row, its column and a salt.
"""

from __future__ import annotations

import hashlib

import numpy as np


def gaussian(rows: int, columns: np.ndarray, salt: str) -> np.ndarray:
    """A (rows x len(columns)) float64 matrix of nearly normal numbers, mean 0, variance 1 (the sum of four uniform ones).

    columns: absolute column indices, so that any part of the infinite matrix can be asked for alone. Only whole-number
    arithmetic and one exact division, hence bit-identical everywhere.
    """
    seed = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        counter = np.arange(rows, dtype=np.uint64)[:, None] * np.uint64(1 << 20) + np.asarray(columns, dtype=np.uint64)[None, :]
        bits = _mix(counter + np.uint64(seed))
    # Four 16-bit uniforms: variance of their sum is 4 * (2^32 - 1) / 12.
    total = np.zeros(bits.shape, dtype=np.int64)
    for shift in (0, 16, 32, 48):
        total += ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    return (total - 2 * 0xFFFF) / _DEVIATION


_DEVIATION = float(np.sqrt(4 * (2.0**32 - 1) / 12))


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
