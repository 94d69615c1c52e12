"""Metrics against independent formulas, closed forms and laws that hold for random matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analyzers.spectra import METRICS, LayerSpectrum
from analyzers.spectra.metrics import noise, power_law
from loraxs_core.checkpoint import Weight
from loraxs_core.spectrum_kernels import spectrum


def layer_of(matrix: np.ndarray) -> LayerSpectrum:
    result = spectrum(matrix)
    return LayerSpectrum(Weight("w", "other", matrix.shape, "float64"), result.values, result.energy, result.error)


def layer_with(values, shape=None) -> LayerSpectrum:
    values = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    energy = float(np.sum((values / values[0]) ** 2)) if values[0] else 0.0
    shape = shape or (values.size, values.size)
    return LayerSpectrum(Weight("w", "other", shape, "float64"), values, energy, 1e-15)


GAUSSIAN = np.random.default_rng(0).standard_normal((300, 200))


def test_every_metric_says_what_it_means_and_where_it_comes_from():
    assert len(METRICS) >= 20
    for name, metric in METRICS.items():
        assert metric.label, name
        assert metric.meaning.endswith("."), name
        assert metric.meaning.count(". ") == 0, name
        assert metric.source, name


def test_norms_are_numpys():
    metrics = layer_of(GAUSSIAN).metrics
    assert metrics["sigma_max"] == pytest.approx(np.linalg.norm(GAUSSIAN, 2))
    assert metrics["frobenius_norm"] == pytest.approx(np.linalg.norm(GAUSSIAN))
    assert metrics["nuclear_norm"] == pytest.approx(np.linalg.norm(GAUSSIAN, "nuc"))
    assert metrics["condition_number"] == pytest.approx(np.linalg.cond(GAUSSIAN))


@pytest.mark.parametrize("equal", [1, 7, 40])
def test_equal_directions_are_counted_by_every_soft_rank(equal):
    metrics = layer_with([2.5] * equal + [0.0] * (50 - equal)).metrics
    for name in ("stable_rank", "effective_rank", "effective_rank_energy", "participation_ratio"):
        assert metrics[name] == pytest.approx(equal), name


def test_rank_for_an_energy_is_the_smallest_that_reaches_it():
    metrics = layer_with([3.0, 2.0, 1.0, 1.0, 1.0]).metrics  # energies 9, 4, 1, 1, 1 of 16
    assert (metrics["rank_50"], metrics["rank_90"], metrics["rank_95"], metrics["rank_99"]) == (1, 4, 5, 5)
    uniform = layer_with(np.ones(100)).metrics
    assert (uniform["rank_50"], uniform["rank_90"], uniform["rank_95"], uniform["rank_99"]) == (50, 90, 95, 99)


def test_energy_at_a_rank():
    layer = layer_with([3.0, 2.0, 1.0, 1.0, 1.0])
    assert [layer.energy_at(k) for k in (0, 1, 2, 5, 9)] == pytest.approx([0, 9 / 16, 13 / 16, 1, 1])


@pytest.mark.parametrize("shape", [(300, 200), (120, 260)])
def test_gain_over_random_directions(shape):
    """Against random subspaces drawn and measured."""
    generator = np.random.default_rng(8)
    matrix = generator.standard_normal(shape) * np.linspace(3, 0.1, shape[1])
    rank = 12
    shares = [
        np.linalg.norm(matrix @ np.linalg.qr(generator.standard_normal((shape[1], rank)))[0]) ** 2 / np.linalg.norm(matrix) ** 2
        for _ in range(200)
    ]
    layer = layer_of(matrix)
    assert layer.gain_over_random(rank) == pytest.approx(layer.energy_at(rank) / np.mean(shares), rel=0.05)
    assert layer.gain_over_random(rank) > 1.5
    assert math.isnan(layer.gain_over_random(0))


def test_the_zero_matrix_has_no_directions_and_raises_nothing():
    metrics = layer_of(np.zeros((30, 40))).metrics
    for name in (
        "sigma_max",
        "stable_rank",
        "effective_rank",
        "participation_ratio",
        "rank_90",
        "mp_spikes",
        "gavish_donoho_rank",
    ):
        assert metrics[name] == 0, name
    for name in ("condition_number", "alpha", "snr", "decay_slope"):
        assert math.isnan(metrics[name]), name


def test_one_row_has_finite_or_blank_metrics():
    metrics = layer_of(np.arange(1.0, 9)[None]).metrics
    assert metrics["stable_rank"] == pytest.approx(1)
    assert metrics["rank_99"] == 1
    assert math.isnan(metrics["alpha"])


def test_a_partial_spectrum_keeps_what_can_be_known_exactly():
    whole = layer_of(GAUSSIAN)
    top = LayerSpectrum(whole.weight, whole.singular_values[:60], whole.energy, whole.error)
    assert not top.complete
    for name, metric in METRICS.items():
        if metric.needs_all:
            assert math.isnan(top.metrics[name]), name
    for name in ("sigma_max", "frobenius_norm", "stable_rank", "rank_50"):
        assert top.metrics[name] == pytest.approx(whole.metrics[name]), name
    assert math.isnan(top.metrics["rank_99"])
    assert top.energy_at(60) == pytest.approx(whole.energy_at(60))
    assert math.isnan(top.energy_at(61))


def test_condition_number_is_blank_where_the_smallest_value_is_rounding():
    assert math.isnan(layer_of(GAUSSIAN[:, :1] @ GAUSSIAN[:1, :]).metrics["condition_number"])


def slow_fit(data: np.ndarray) -> tuple[float, float, float]:
    """Clauset's method written out: every candidate, every distance."""
    data = np.sort(data)
    best = (math.nan, math.inf, math.nan)
    for i in range(data.size - 1):
        tail = data[i:]
        alpha = 1 + tail.size / np.sum(np.log(tail / tail[0]))
        distance = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(tail.size) / tail.size).max()
        if distance < best[1]:
            best = (alpha, distance, tail[0])
    return best


@pytest.mark.parametrize("seed", range(6))
def test_power_law_fit_equals_the_method_written_out(seed):
    generator = np.random.default_rng(seed)
    data = [
        generator.pareto(1.5, 400) + 1,
        generator.exponential(1, 300),
        np.linalg.svd(generator.standard_normal((200, 150)), compute_uv=False) ** 2,
        np.r_[generator.uniform(0, 1, 200), generator.pareto(2.0, 100) + 1],
        generator.lognormal(0, 2, 250),
        np.r_[np.full(50, 2.0), generator.pareto(1.2, 90) + 2],
    ][seed]
    assert power_law.fit(data) == pytest.approx(slow_fit(data), rel=1e-9)


def test_power_law_exponent_of_a_true_power_law():
    data = np.random.default_rng(3).pareto(1.7, 5000) + 1  # density ~ x^-2.7
    alpha, distance, _ = power_law.fit(data)
    assert alpha == pytest.approx(2.7, abs=0.1)
    assert distance < 0.03


def test_too_few_or_equal_values_have_no_exponent():
    assert all(math.isnan(value) for value in power_law.fit(np.arange(1.0, 11)))
    assert all(math.isnan(value) for value in power_law.fit(np.ones(100)))


@pytest.mark.parametrize("beta", [0.02, 0.05, 0.25, 0.5, 0.75, 1.0])
def test_gavish_donoho_coefficient_is_the_papers(beta):
    """The paper approximates it by 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43 to 0.02, and gives 2.858 for square matrices."""
    coefficient = noise.gavish_donoho_coefficient(beta)
    assert coefficient == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.02)
    if beta == 1:
        assert coefficient == pytest.approx(2.858, abs=5e-4)


@pytest.mark.parametrize("shape", [(400, 400), (800, 200), (150, 900)])
def test_pure_noise_has_its_level_its_edge_and_hardly_a_spike(shape):
    layer = layer_of(0.03 * np.random.default_rng(5).standard_normal(shape))
    assert noise.noise_level(layer) == pytest.approx(0.03, rel=0.02)
    assert layer.metrics["mp_edge"] == pytest.approx(layer.metrics["sigma_max"], rel=0.04)
    assert layer.metrics["mp_spikes"] <= 2
    assert layer.metrics["gavish_donoho_rank"] == 0


def test_planted_directions_are_found_above_the_noise():
    generator = np.random.default_rng(6)
    left = np.linalg.qr(generator.standard_normal((500, 9)))[0]
    right = np.linalg.qr(generator.standard_normal((300, 9)))[0]
    layer = layer_of(0.02 * generator.standard_normal((500, 300)) + 5 * left @ right.T)
    assert layer.metrics["gavish_donoho_rank"] == 9
    assert 9 <= layer.metrics["mp_spikes"] <= 11


def test_signal_to_noise_is_spectrums_ratio():
    values = np.r_[10.0, 8.0, np.linspace(2, 0.1, 100)]
    spread = np.quantile(values, 0.75) - np.quantile(values, 0.25)
    threshold = spread / 1.349 * (1 + 0.5)
    expected = values[values > threshold].sum() / values[values <= threshold].sum() / 10.0
    assert layer_with(values, (102, 408)).metrics["snr"] == pytest.approx(expected)


@pytest.mark.parametrize("slope", [-0.3, -1.0, -2.5])
def test_decay_slope_of_a_power(slope):
    assert layer_with(np.arange(1.0, 201) ** slope).metrics["decay_slope"] == pytest.approx(slope)
