"""`loraxs spectrum`: one layer's singular values, drawn in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from app.options.common import Json, Minus, Model, open_model, scan_model
from app.terminal import print_json, print_table
from app.units import percent_text, shape_text
from loraxs_core.errors import SettingsError
from loraxs_core.roles import LABELS

if TYPE_CHECKING:
    import numpy as np

    from loraxs_core.checkpoint import Checkpoint
    from loraxs_core.inventory import Weight

WIDTH = 40  # characters of the longest bar
STEPS = 24  # lines at most


def run(
    model: Model,
    layer: Annotated[
        str,
        typer.Argument(
            metavar="LAYER", help="A layer's name, or the end of one, such as c_attn[key]; `loraxs inspect` lists them."
        ),
    ],
    minus: Minus = None,
    json: Json = False,
) -> None:
    """The spectrum of one layer: singular values on a log scale, and the energy that the first i of them hold."""
    checkpoint = open_model(model, minus, weights=True, module=layer, quiet=json)
    weight = _find(checkpoint, layer)
    spectrum = scan_model(checkpoint, quiet=json, weights=[weight]).layers[weight.name]
    values, energy = spectrum.singular_values, spectrum.cumulative_energy
    if json:
        print_json({"model": checkpoint.name, "name": weight.name, "singular_values": values, "cumulative_energy": energy})
        return
    rows = [
        (f"{index + 1:,}", f"{value:.4g}", percent_text(float(energy[index])), "█" * _bar(value, values))
        for index, value in ((index, float(values[index])) for index in _log_spaced(len(values)))
    ]
    print_table(
        f"{weight.name} ({LABELS[weight.role]}, {shape_text(weight.shape)})",
        ("i", "σ_i", "energy of the first i", "σ_i, log scale"),
        rows,
        note=f"90 % of the energy lies in {int(spectrum.metrics['rank_90'])} of {len(values)} directions.",
    )


def _find(checkpoint: Checkpoint, layer: str) -> Weight:
    """The weight of that name, or the only one whose name ends so; with a part's name behind it, that part of it alone."""
    if layer.endswith("]") and checkpoint.find(layer) is None and not layer[:-1].rpartition("[")[2].isdigit():
        whole = _find(checkpoint, layer.rpartition("[")[0])
        parts = checkpoint.parts(whole)
        found = [part for part in parts if part.name.endswith(f"[{layer[:-1].rpartition('[')[2]}]")]
        if not found:
            there = f"its parts are {', '.join(part.part for part in parts)}" if parts else "it has no parts that are known"
            raise SettingsError(f"{whole.name} has no part {layer.removeprefix(whole.name)!r}; {there}.")
        return found[0]
    found = [weight for weight in checkpoint.linear if weight.name.endswith(f".{layer}")]
    if len(found) > 1:
        raise SettingsError(
            f"{len(found)} layers end in {layer!r}; say which: {', '.join(weight.name for weight in found[:4])}, …."
        )
    return found[0] if found else checkpoint.weight(layer)


def _bar(value: float, values: np.ndarray) -> int:
    """Characters of the bar of `value`: all for the largest of `values`, one for the smallest, none for zero."""
    largest, smallest = float(values[0]), max(float(values[-1]), float(values[0]) * 1e-6)
    if value == 0:
        return 0
    span = math.log(largest / smallest) or 1.0
    return max(1, round(WIDTH * (1 + math.log(max(value, smallest) / largest) / span)))


def _log_spaced(count: int) -> list[int]:
    """Indices 0 … count - 1, evenly spaced in the logarithm, both ends included."""
    steps = min(STEPS, count)
    if steps == 1:
        return [0]
    return sorted({round(math.exp(math.log(count) * step / (steps - 1))) - 1 for step in range(steps)})
