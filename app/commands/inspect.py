"""`loraxs inspect`: every weight matrix of a model, without loading it."""

from __future__ import annotations

from collections import Counter

from app.options.common import Json, Model, open_model
from app.terminal import print_json, print_table
from app.units import count_text, shape_text
from loraxs_core.roles import LABELS


def run(model: Model, json: Json = False) -> None:
    """List every weight matrix: name, role, shape (out x in), dtype, parameters. Reads headers, not weights."""
    checkpoint = open_model(model, quiet=json)
    if json:
        print_json(
            {
                "model": checkpoint.name,
                "model_type": checkpoint.model_type,
                "has_weights": checkpoint.has_weights,
                "layers": checkpoint.layers,
                "parameters": checkpoint.parameters,
                "note": checkpoint.note,
                "weights": [
                    {
                        "name": weight.name,
                        "role": weight.role,
                        "shape": list(weight.shape),
                        "dtype": weight.dtype,
                        "parameters": weight.parameters,
                        "kind": weight.kind,
                        "layer": weight.layer,
                        "bias": weight.bias,
                        "tied_to": weight.tied_to,
                    }
                    for weight in checkpoint.weights
                ],
            }
        )
        return
    rows = [
        (
            weight.name,
            LABELS[weight.role],
            shape_text(weight.shape),
            weight.dtype,
            f"tied to {weight.tied_to}" if weight.tied_to else f"{weight.parameters:,}",
        )
        for weight in checkpoint.weights
    ]
    roles = Counter(weight.role for weight in checkpoint.weights)
    print_table(
        f"{checkpoint.name}: {len(checkpoint.weights)} weight matrices, {count_text(checkpoint.parameters)} parameters in them",
        ("name", "role", "shape (out x in)", "dtype", "parameters"),
        rows,
        note=", ".join(f"{count} {LABELS[role]}" for role, count in roles.items())
        + (f". {checkpoint.note}" if checkpoint.note else "")
        + (
            ""
            if checkpoint.has_weights
            else ". An architecture without weights: good for plans, sizes and memory, not for spectra."
        ),
    )
