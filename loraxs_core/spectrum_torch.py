"""Singular values on an accelerator through PyTorch: matrices of one shape in a batch, Gram matrix and eigenvalues on the device.

The same promises as `spectrum_kernels`: where the eigenvalues of the Gram matrix cannot give a small singular value within the
tolerance, the matrix itself goes through an SVD on the device. The only module of the scan that imports PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from loraxs_core.errors import NonFiniteWeights, SettingsError
from loraxs_core.progress import Cancellation
from loraxs_core.spectrum_kernels import FAST_TOLERANCE, FAST_ULPS, GRAM_ULPS, STRIP_BYTES, TOLERANCE, Spectrum
from loraxs_core.strips import Strips


def check_device(device: str) -> None:
    """Raises SettingsError when PyTorch has no such device here, or when it cannot compute in float64."""
    import torch

    try:
        torch.zeros(1, device=device, dtype=torch.float64).item()  # which "meta", a device without numbers, cannot give
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SettingsError(f"PyTorch cannot compute in float64 on the device {device!r} here ({reason}); use cpu.") from error


def spectra_on_device(
    matrices: Sequence[Strips],
    device: str,
    *,
    fast: bool = False,
    top: int | None = None,
    names: Sequence[str],
    step: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Spectrum]:
    """The spectra of `matrices`, all of one shape, as `spectrum_kernels.spectrum` gives them; computed on `device`.

    Holds the batch on the device in float64 (float32 when fast): out x in, and n x n twice, a matrix.
    """
    import torch

    dtype = torch.float32 if fast or top is not None else torch.float64
    batch = torch.stack([_on_device(one, name, device, step, cancelled) for one, name in zip(matrices, names, strict=True)])
    peaks = batch.abs().amax(dim=(1, 2))
    exponents = torch.where(peaks > 0, torch.frexp(peaks).exponent, torch.zeros_like(peaks, dtype=torch.int32))
    batch = torch.ldexp(batch, -exponents[:, None, None])
    energies = batch.square().sum(dim=(1, 2)).cpu().numpy()
    tall = batch if batch.shape[1] >= batch.shape[2] else batch.transpose(1, 2)
    side = tall.to(dtype)
    eigenvalues = torch.linalg.eigvalsh(side.transpose(1, 2) @ side).to(torch.float64).flip(-1).clamp_min(0)
    results = []
    for index, values in enumerate(eigenvalues.sqrt().cpu().numpy()):
        if cancelled and cancelled():
            raise Cancellation
        error = gram_error(values[:top], dtype == torch.float32)
        if top is None and error > (FAST_TOLERANCE if fast else TOLERANCE):
            values = torch.linalg.svdvals(tall[index]).cpu().numpy()
            error = values.size * float(np.finfo(np.float64).eps)
        energy = float(energies[index]) / values[0] ** 2 if values[0] else 0.0
        results.append(Spectrum(np.ldexp(values[:top], int(exponents[index])), energy, error))
    if step:
        step(1.0)
    return results


def _on_device(strips: Strips, name: str, device: str, step, cancelled):
    """The whole matrix on the device in float64, carried there in strips. Raises NonFiniteWeights, Cancellation."""
    import torch

    rows, columns = strips.shape
    matrix = torch.empty((rows, columns), dtype=torch.float64, device=device)
    height = max(1, STRIP_BYTES // (8 * columns))
    for start in range(0, rows, height):
        if cancelled and cancelled():
            raise Cancellation
        strip = strips.rows(start, min(start + height, rows))
        matrix[start : start + strip.shape[0]] = torch.from_numpy(np.ascontiguousarray(strip)).to(device)
        if step:
            step(0.3 * min(1.0, (start + height) / rows))
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteWeights(f"{name} holds NaN or infinite numbers; the checkpoint is damaged, download it again.")
    return matrix


def gram_error(values: np.ndarray, single: bool) -> float:
    """Bound on the error of `values`, roots of the eigenvalues of a Gram matrix, relative to the largest.

    As in `spectrum_kernels`.
    """
    if values[0] == 0:
        return 0.0
    eps = float(np.finfo(np.float32 if single else np.float64).eps)
    delta = (FAST_ULPS if single else GRAM_ULPS) * eps
    smallest = float(values[-1] / values[0])
    largest = 2.5 * eps * math.sqrt(values.size) if single else delta
    return max(delta / (2 * smallest) if smallest**2 > delta else math.sqrt(delta), largest / 2)
