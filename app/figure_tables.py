"""The numbers of a report's figures as tables: all that a reader of Markdown gets of them, and to be unfolded below each in HTML.

Made of the frames that the figures are drawn of, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analyzers.units import GIB
from app.charts import module_rows, part_label
from app.report import Table
from app.units import memory_unit


def by_layer(frame: pd.DataFrame, column: str, label: str) -> Table:
    """A layer by module map: a row a layer, a column a module, blank where the map is (`charts.layer_map`).

    frame: one row a weight with name, layer (NaN outside the stack), `column`, and ``sigma_max`` where spectra are known. label: what the
    numbers are, with their unit.
    """
    modules = module_rows(frame["name"].tolist())
    values = frame[column].astype(float)
    if "sigma_max" in frame and column != "rank":
        values = values.mask(frame["sigma_max"] == 0)
    layers = frame["layer"].astype(float)  # those outside the stack come last, as on the map
    cells = {(layer, module): value for layer, module, value in zip(layers.fillna(-1), modules, values, strict=True)}
    rows = sorted(layers.dropna().unique()) + ([-1.0] if layers.isna().any() else [])
    columns = list(dict.fromkeys(modules))
    table = [
        ("none" if layer < 0 else f"{layer:.0f}", *(_number(cells.get((layer, module))) for module in columns))
        for layer in rows
    ]
    return Table(("layer", *columns), table, f"{label}.")


def memory_parts(frame: pd.DataFrame, capacities: Mapping[str, float]) -> Table:
    """The bars of `charts.memory_bars`: a row a part, a column a method. frame: method, part, gib. capacities: card -> GiB usable."""
    wide = frame.pivot_table(index="part", columns="method", values="gib", sort=False).fillna(0.0)
    unit, size = memory_unit(GIB * wide.sum().max())
    digits = 3 if size == GIB else 1
    rows = [
        (part_label(part), *(f"{held * GIB / size:.{digits}f}" for held in row))
        for part, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    cards = ", ".join(f"{card} {size:.1f} GiB" for card, size in capacities.items())
    return Table((f"in use at the peak ({unit})", *wide.columns), rows, f"Cards: {cards}." if cards else "")


def scores(frame: pd.DataFrame, metric: str) -> Table:
    """The points of `charts.accuracy_against_parameters`. frame: of `RunFolder.summary`, with ``front``."""
    rows = [
        (row["label"], f"{row['parameters']:,.0f}", f"{row['score']:.4f}", *_interval(row), "yes" if row["front"] else "")
        for row in frame.to_dict("records")
    ]
    columns = ("method", "trained numbers, without the head", f"test {metric}", "95 % from", "to", "on the Pareto front")
    return Table(columns, rows)


def _interval(row: Mapping) -> tuple[str, str]:
    return (f"{row['low']:.4f}", f"{row['high']:.4f}") if row.get("interval") else ("", "")


def _number(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.0f}" if value == round(value) else f"{value:.4g}"
