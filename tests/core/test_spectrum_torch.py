"""The accelerator's code on PyTorch's CPU device: the same promises as the CPU kernels."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from loraxs_core.errors import NonFiniteWeights, SettingsError
from loraxs_core.progress import Cancellation
from loraxs_core.spectrum_kernels import FAST_TOLERANCE, TOLERANCE, ArrayStrips
from loraxs_core.spectrum_torch import check_device, spectra_on_device


def on_cpu(matrices, **options):
    names = [f"layer {index}" for index in range(len(matrices))]
    return spectra_on_device([ArrayStrips(matrix) for matrix in matrices], "cpu", names=names, **options)


def batch(shape) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    thin = generator.standard_normal((shape[0], 3)) @ generator.standard_normal((3, shape[1]))
    return [
        generator.standard_normal(shape).astype(np.float32),
        thin,
        np.zeros(shape),
        1e200 * generator.standard_normal(shape),
        1e-200 * generator.standard_normal(shape),
    ]


@pytest.mark.parametrize("shape", [(80, 50), (50, 80), (64, 64), (1, 30)])
def test_a_batch_of_one_shape_equals_lapack(shape):
    for matrix, result in zip(batch(shape), on_cpu(batch(shape)), strict=True):
        truth = scipy.linalg.svdvals(matrix.astype(np.float64))
        assert result.error <= TOLERANCE
        assert np.abs(result.values - truth).max() <= TOLERANCE * truth[0]
        expected = np.sum((truth / truth[0]) ** 2) if truth[0] else 0
        assert result.energy == pytest.approx(expected, rel=1e-9)


def test_fast_is_within_its_tolerance():
    for matrix, result in zip(batch((300, 100)), on_cpu(batch((300, 100)), fast=True), strict=True):
        truth = scipy.linalg.svdvals(matrix.astype(np.float64))
        assert np.abs(result.values - truth).max() <= FAST_TOLERANCE * truth[0]


def test_top_keeps_the_energy_of_all():
    matrix = batch((90, 120))[0]
    truth = scipy.linalg.svdvals(matrix.astype(np.float64))
    (result,) = on_cpu([matrix], top=7)
    assert result.values.size == 7
    assert np.abs(result.values - truth[:7]).max() <= result.error * truth[0]
    assert result.energy == pytest.approx(np.sum((truth / truth[0]) ** 2), rel=1e-5)


def test_nan_is_refused_by_name():
    bad = np.ones((4, 5))
    bad[2, 2] = np.nan
    with pytest.raises(NonFiniteWeights, match="layer 1 holds NaN"):
        on_cpu([np.ones((4, 5)), bad])


def test_stops_when_asked():
    with pytest.raises(Cancellation):
        on_cpu([np.ones((4, 5))], cancelled=lambda: True)


def test_a_device_that_is_not_there_is_named():
    check_device("cpu")
    with pytest.raises(SettingsError, match="on the device 'nowhere'"):
        check_device("nowhere")
