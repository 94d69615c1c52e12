"""The frozen pair (A, B): the same on every route, whatever the spectrum; the closed-form R; the disk cache."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraxs_core import bases as module
from loraxs_core import svd
from loraxs_core.bases import SIGMAS, VECTORS, bases, delta_weight, groups, identify, optimal_r, placement
from loraxs_core.errors import AdapterError
from loraxs_core.proof import fingerprint, quantise


def with_spectrum(values: np.ndarray, out: int, into: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, len(values))))[0] for side in (out, into))
    return (left * values) @ right.T


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


NEARLY_EQUAL = {
    "pairs": np.repeat([1.0, 0.8, 0.6, 0.4, 0.3], 2) * (1 + 1e-13 * np.arange(10)),
    "across the rank": np.array([1.0, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.2, 0.1, 0.05]),
    "all": np.ones(10),
    "close, not equal": 1 - 1e-6 * np.arange(10),
    "vanishing": np.array([1.0, 0.5, 0.25, 0, 0, 0, 0, 0, 0, 0]),
}


MATRICES = {name: with_spectrum(values, 40, 30) for name, values in NEARLY_EQUAL.items()}
MATRICES |= {  # singular values that are equal to the last bit
    "identity": np.eye(32),
    "hadamard": scipy.linalg.hadamard(32).astype(float),
    "zero": np.zeros((20, 30)),
    "one entry": np.eye(20, 30) * (np.arange(20) == 3)[:, None],
}


@pytest.mark.parametrize("route", ["gram", "krylov", "gesdd", "gesvd"])
@pytest.mark.parametrize("kind", MATRICES)
def test_every_route_gives_the_same_update(kind, route, monkeypatch):
    """Relative error of dW at most 1e-4 (issue 3): another driver, another memory layout, float64 instead of float32."""
    matrix = MATRICES[kind]
    R = np.random.default_rng(1).standard_normal((4, 4))
    expected = delta_weight(R, bases(matrix, 4), sigma="none")
    original = svd.truncated_svd
    monkeypatch.setattr(module, "truncated_svd", lambda matrix, r, name: original(matrix, r, name=name, driver=route))
    for layout in (np.asfortranarray(matrix), matrix.astype(np.float32)):
        assert relative(delta_weight(R, bases(layout, 4), sigma="none"), expected) < 1e-4


@pytest.mark.parametrize("spectrum", NEARLY_EQUAL)
def test_a_smaller_rank_is_the_beginning_of_a_larger_one(spectrum):
    matrix = with_spectrum(NEARLY_EQUAL[spectrum], 40, 30)
    large, small = bases(matrix, 7), bases(matrix, 4)
    np.testing.assert_allclose(large.U[:, :4], small.U, atol=1e-6)
    np.testing.assert_allclose(large.Vt[:4], small.Vt, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    out=st.integers(1, 24),
    into=st.integers(1, 24),
    share=st.floats(0, 1),
    vectors=st.sampled_from(VECTORS),
    sigma=st.sampled_from(SIGMAS),
    seed=st.integers(0, 99),
)
def test_a_reachable_update_gives_its_own_r_back(out, into, share, vectors, sigma, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((out, into))
    r = max(1, round(share * min(out, into)))
    found = bases(matrix, r, vectors=vectors, seed=seed, cache=False)
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(r), atol=1e-11)
    np.testing.assert_allclose(found.Vt @ found.Vt.T, np.eye(r), atol=1e-11)
    R = rng.standard_normal((r, r))
    again = optimal_r(delta_weight(R, found, sigma=sigma, scaling=2.0), found, sigma=sigma, scaling=2.0)
    np.testing.assert_allclose(again, R, rtol=1e-6, atol=1e-6)
    # and for any update it is the best: no other R comes closer
    delta = rng.standard_normal((out, into))
    best = optimal_r(delta, found, sigma=sigma)
    distance = np.linalg.norm(delta - delta_weight(best, found, sigma=sigma))
    other = delta_weight(best + 1e-3 * rng.standard_normal((r, r)), found, sigma=sigma)
    assert np.linalg.norm(delta - other) >= distance - 1e-9


def test_which_vectors():
    matrix = with_spectrum(np.arange(10, 0, -1.0), 12, 10)
    expected = {"top": [10, 9, 8], "middle": [7, 6, 5], "bottom": [3, 2, 1], "random": [1, 1, 1]}
    for vectors, values in expected.items():
        found = bases(matrix, 3, vectors=vectors)
        np.testing.assert_allclose(found.S, values, rtol=1e-6)
        if vectors != "random":
            np.testing.assert_allclose(matrix @ found.Vt.T, found.U * found.S, atol=1e-5)
    one, other = (bases(matrix, 3, vectors="random", seed=seed).U for seed in (0, 1))
    assert np.abs(one - other).max() > 0.1


def test_placement_leaves_the_product_alone_but_for_none():
    values = np.array([4.0, 1.0])
    for sigma in SIGMAS:
        s_in, s_out = placement(values, sigma)
        np.testing.assert_array_equal(s_in * s_out, np.ones(2) if sigma == "none" else values)
    with pytest.raises(AdapterError, match="input, output, split, none"):
        placement(values, "left")


def test_groups_are_runs_of_neighbours():
    values = np.array([1.0, 1 - 1e-9, 0.5, 0.5 - 9e-9, 0.5 - 18e-9, 0.1])
    assert groups(values) == [slice(0, 2), slice(2, 5), slice(5, 6)]
    assert groups(np.array([])) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_copy_is_recognised_and_a_sibling_is_not(dtype):
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    copy = weight.to(dtype).float()
    sibling = weight + 1e-3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    mine, copied, other = (identify(one.numpy())[1] for one in (weight, copy, sibling))
    assert mine.rounded_copy(copied)
    assert copied.rounded_copy(mine)
    assert not mine.same_weight(copied)
    assert not mine.rounded_copy(other)
    assert mine == identify(weight.double().numpy())[1]
    assert mine != identify(weight.T.numpy())[1]


def test_bases_of_a_large_weight_are_those_that_an_exact_route_gave(monkeypatch):
    """Adapters on disk were made by a float64 route: its bases and those of today's default give one ΔW, and the same proof."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, 1000)))[0] for side in (1200, 1000))
    matrix = ((left * (1 + np.arange(1000)) ** -0.3) @ right.T).astype(np.float32)
    R = rng.standard_normal((16, 16))
    today = bases(matrix, 16, cache=False)
    original = svd.truncated_svd
    monkeypatch.setattr(module, "truncated_svd", lambda matrix, r, name: original(matrix, r, name=name, driver="gesdd"))
    before = bases(matrix, 16, cache=False)
    assert not np.array_equal(today.U, before.U)  # it is another route
    one, other = delta_weight(R, today), delta_weight(R, before)
    assert np.linalg.norm(one - other) < 1e-6 * np.linalg.norm(other)
    steps = quantise(fingerprint(today).sketch).astype(int) - quantise(fingerprint(before).sketch)
    assert np.abs(steps).max() <= 1  # a value on the border of a step may fall to either side
    assert (steps != 0).mean() < 0.01


def test_the_second_time_comes_from_the_cache(own_folders, monkeypatch):
    matrix = with_spectrum(np.linspace(1, 0.1, 256), 300, 256).astype(np.float32)
    first = bases(matrix, 8)
    monkeypatch.setattr(module, "truncated_svd", None)  # any SVD from here on is an error
    again = bases(matrix, 8)
    np.testing.assert_array_equal(first.U, again.U)
    np.testing.assert_array_equal(bases(matrix, 3).Vt, first.Vt[:3])
    with pytest.raises(TypeError):
        bases(matrix, 9)
    with pytest.raises(TypeError):
        bases(matrix * np.float32(1.5), 8)


def test_a_damaged_cache_is_computed_again(own_folders):
    matrix = with_spectrum(np.linspace(1, 0.1, 256), 300, 256).astype(np.float32)
    first = bases(matrix, 8)
    (file,) = (own_folders / "cache").rglob("*.kept")
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(bases(matrix, 8).U, first.U)
    file.write_bytes(b"")
    np.testing.assert_array_equal(bases(matrix, 8).U, first.U)


def test_the_cache_can_be_switched_off(own_folders, monkeypatch):
    monkeypatch.setenv("LORAXS_BASES_CACHE", "0")
    bases(np.random.default_rng(0).standard_normal((300, 256)), 4)
    assert not list((own_folders / "cache").rglob("*.kept"))


def test_errors():
    with pytest.raises(AdapterError, match=r"layer\.0 is 5x4.*between 1 and 4, not 5"):
        bases(np.ones((5, 4)), 5, name="layer.0")
    with pytest.raises(AdapterError, match="top, middle, bottom, random"):
        bases(np.ones((5, 4)), 2, vectors="best")
