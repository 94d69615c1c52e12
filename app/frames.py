"""A model's inventory and estimates of memory as data frames, for tables and figures. Counting only; everything else comes from the
analyzers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from analyzers.methods import METHODS
from analyzers.units import GIB
from app.units import shape_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.roles import LABELS

if TYPE_CHECKING:
    from analyzers.memory import MemoryEstimate


def inventory(checkpoint: Checkpoint) -> pd.DataFrame:
    """One row a weight matrix: name, role, layer, shape (out x in), dtype, parameters, bias, tied to."""
    return pd.DataFrame(
        [
            {
                "name": weight.name,
                "role": LABELS[weight.role],
                "layer": weight.layer,
                "shape": shape_text(weight.shape),
                "dtype": weight.dtype,
                "parameters": weight.parameters,
                "kind": weight.kind,
                "bias": weight.bias,
                "tied to": weight.tied_to or "",
            }
            for weight in checkpoint.weights
        ]
    ).astype({"layer": "Int64"})


def memory_label(method: str, estimate: MemoryEstimate) -> str:
    """The method as bars and tables call it; formulas are not to be taken for a trace."""
    return METHODS[method].label + (" (closed form)" if estimate.how == "closed form" else "")


def roles(checkpoint: Checkpoint) -> pd.DataFrame:
    """One row a role: matrices, their shapes, parameters, share of all parameters (%), and whether adapters go there."""
    rows: dict[str, dict] = {}
    for weight in checkpoint.weights:
        row = rows.setdefault(weight.role, {"matrices": 0, "shapes": {}, "parameters": 0, "adaptable": False})
        row["matrices"] += 1
        row["shapes"][shape_text(weight.shape)] = None
        row["parameters"] += weight.parameters
        row["adaptable"] |= weight.is_adaptable
    total = checkpoint.parameters or 1
    return pd.DataFrame(
        [
            {
                "role": LABELS[role],
                "matrices": row["matrices"],
                "shapes (out x in)": ", ".join(row["shapes"]),
                "parameters": row["parameters"],
                "share (%)": 100 * row["parameters"] / total,
                "takes adapters": row["adaptable"],
            }
            for role, row in rows.items()
        ]
    )


def dtypes(checkpoint: Checkpoint) -> str:
    """The storage types of the matrices, most parameters first."""
    held: dict[str, int] = {}
    for weight in checkpoint.weights:
        held[weight.dtype] = held.get(weight.dtype, 0) + weight.parameters
    return ", ".join(sorted(held, key=held.__getitem__, reverse=True))


def memory(estimates: Mapping[str, MemoryEstimate]) -> pd.DataFrame:
    """One row a method (as it is called) and part of its peak: method, part, gib."""
    return pd.DataFrame(
        [
            {"method": label, "part": part, "gib": held / GIB}
            for label, estimate in estimates.items()
            for part, held in estimate.breakdown.items()
        ]
    )


def memory_intervals(estimates: Mapping[str, MemoryEstimate]) -> dict[str, tuple[float, float]]:
    """Method -> (lower, upper) end of the reserved peak's interval, GiB."""
    return {label: (estimate.interval[0] / GIB, estimate.interval[1] / GIB) for label, estimate in estimates.items()}
