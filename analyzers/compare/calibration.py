"""Measuring what a task says about ranks: gradients of R at its start, a short warm-up, and the spread of what layers read.

At R = 0 the gradient in a module is G = (alpha/r) Bᵀ (∂L/∂W) Aᵀ. The first-order gain of rank r is ‖G[:r, :r]‖²_F under plain gradient
descent and Σ ĝ²/√E[g²] over that block under Adam, whose steps are ĝ/√E[g²]. Squares of means are estimated by products of means over
different batches, which are unbiased; the square of one mean would count noise as gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from analyzers.ranks.signals import Curve

PARTS = 4  # of the batches: two in each half, whose product is that half's unbiased square
ROWS = 512  # token vectors kept a layer for the spread of its inputs
SMALL = 1e-30


def nested(block: np.ndarray) -> np.ndarray:
    """(n, n) -> (n,): sums over the top-left 1 x 1, 2 x 2, … blocks.

    >>> nested(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [1.0, 10.0]
    """
    return np.diagonal(block.cumsum(0).cumsum(1)).copy()


def gradient_curves(
    loss: Callable[[Any], torch.Tensor], parameters: Mapping[str, nn.Parameter], batches: Sequence[Any]
) -> dict[str, dict[str, Curve]]:
    """``gradient``, ``adam`` and ``fisher`` curves of every layer, by one backward pass a batch.

    loss: of a batch. parameters: layer -> its R (r x r), left as it is. batches: at least 4; the i-th goes into part i mod 4.
    Fisher is E[g²] of batch gradients, summed over the block.
    """
    sums = {name: np.zeros((PARTS, *parameter.shape)) for name, parameter in parameters.items()}
    squares = {name: np.zeros((PARTS, *parameter.shape)) for name, parameter in parameters.items()}
    counts = np.zeros(PARTS)
    for number, batch in enumerate(batches):
        found = torch.autograd.grad(loss(batch), list(parameters.values()), allow_unused=True)
        counts[number % PARTS] += 1
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                value = gradient.detach().double().numpy()
                sums[name][number % PARTS] += value
                squares[name][number % PARTS] += value**2
    curves: dict[str, dict[str, Curve]] = {"gradient": {}, "adam": {}, "fisher": {}}
    halves = ((0, 1, 2, 3), (0, 1), (2, 3))
    for name in parameters:
        means = sums[name] / counts[:, None, None]
        second = [squares[name][list(half)].sum(0) / counts[list(half)].sum() for half in halves]
        products = [np.mean([means[i] * means[j] for i, j in combinations(half, 2)], axis=0) for half in halves]
        curves["gradient"][name] = Curve.of(*(nested(product) for product in products))
        adam = (nested(product / np.sqrt(spread + SMALL)) for product, spread in zip(products, second, strict=True))
        curves["adam"][name] = Curve.of(*adam)
        curves["fisher"][name] = Curve.of(*(nested(spread) for spread in second))
    return curves


def warm_up_curves(
    loss: Callable[[Any], torch.Tensor], parameters: Mapping[str, nn.Parameter], batches: Sequence[Any], rate: float
) -> dict[str, Curve]:
    """How much each block of R lowered the loss in a short training: Σ over steps of -g·ΔR (a first-order attribution).

    Trains R by Adam at `rate` over each half of `batches` in turn, and puts R back to where it was.
    """
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    half = len(batches) // 2
    parts = []
    for part in (batches[:half], batches[half:]):
        gained = {name: np.zeros(parameter.shape) for name, parameter in parameters.items()}
        optimizer = torch.optim.Adam(parameters.values(), lr=rate)
        for batch in part:
            optimizer.zero_grad(set_to_none=True)
            loss(batch).backward()
            before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            optimizer.step()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    step = parameter.detach() - before[name]
                    gained[name] -= (parameter.grad * step).double().numpy()
        parts.append({name: nested(value) for name, value in gained.items()})
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
                parameter.grad = None
    return {name: Curve.of(parts[0][name] + parts[1][name], parts[0][name], parts[1][name]) for name in parameters}


def activation_curves(
    forward: Callable[[Any], Any], layers: Mapping[str, nn.Module], batches: Sequence[Any], top: int
) -> dict[str, Curve]:
    """Share of the variance of a layer's input that its first r principal components explain (EVA, arXiv 2410.07170).

    layers: name -> the module whose input is read, (…, in). Up to 512 token vectors a layer, spread over the batches; the first half
    of the curves comes from the batches of even number. Padding is read along: it is part of what the layer sees.
    """
    rows: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    each = max(1, -(-ROWS // len(batches)))

    def reader(name: str) -> Callable[..., None]:
        def read(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            flat = given[0].detach().reshape(-1, given[0].shape[-1])
            picks = torch.linspace(0, len(flat) - 1, min(each, len(flat))).long()
            rows[name].append(flat[picks].float().numpy())

        return read

    handles = [module.register_forward_pre_hook(reader(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Curve.of(*(_explained(part, top) for part in (found, found[::2], found[1::2]))) for name, found in rows.items()
    }


def _explained(rows: list[np.ndarray], top: int) -> np.ndarray:
    """(top,) share of the variance that the first 1, 2, … principal components hold."""
    table = np.concatenate(rows).astype(np.float64) if rows else np.zeros((1, 1))
    table -= table.mean(0)
    energies = np.linalg.svd(table, compute_uv=False) ** 2
    shares = np.cumsum(energies) / max(float(energies.sum()), SMALL)
    return np.pad(shares, (0, max(0, top - len(shares))), mode="edge")[:top]
