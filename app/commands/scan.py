"""`loraxs scan`: the singular values of every linear weight, one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.options.common import Json, Minus, Model, Out, PlanFile, load_plan, open_model, scan_model
from app.options.scan import ScanChoice, takes_scan_choice
from app.outputs import Force, refuse_file
from app.tables import TABLES, write_table
from app.terminal import print_json, print_table, say
from app.units import percent_text, shape_text
from loraxs_core.paths import atomic_file
from loraxs_core.progress import seconds

if TYPE_CHECKING:
    import pandas as pd

    from analyzers.spectra import Spectra
    from loraxs_core.checkpoint import Checkpoint

NOT_FINITE = 3  # exit code: done, and some layers have no spectrum


ENDINGS = (*TABLES, ".safetensors")


@takes_scan_choice
def run(
    model: Model,
    choice: ScanChoice,
    minus: Minus = None,
    plan: PlanFile = None,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """All singular values of every linear weight, with norms and ranks per layer. Exact; cached, so the second time is instant.

    A layer that holds NaN or infinities has none: it is named, the others are scanned, and the exit code is 3.
    --out takes .csv, .parquet or .json for the table, .safetensors for the singular values themselves.
    """
    ranks = load_plan(plan)
    if out:
        refuse_file(out, ENDINGS, force=force)
    checkpoint = open_model(model, minus, weights=True, quiet=json)
    spectra = scan_model(checkpoint, quiet=json, **vars(choice))
    frame = spectra.frame(ranks)
    if out:
        _write(spectra, frame, out, force=force)
    if json:
        layers = [{**row, "shape": [row["out"], row["in"]]} for row in frame.to_dict("records")]
        told = {"seconds": spectra.seconds, "from_cache": spectra.from_cache, "note": checkpoint.note}
        print_json({"model": checkpoint.name, "layers": layers, "not_finite": list(spectra.not_finite), **told})
    else:
        _print(checkpoint, spectra, frame, choice.top)
    if spectra.not_finite:
        _say_not_finite(spectra)
        raise typer.Exit(NOT_FINITE)


def _say_not_finite(spectra: Spectra) -> None:
    names, shown = list(spectra.not_finite), 5
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    say(
        f"NaN or infinite numbers, and so no spectrum, in {len(names)} of {len(names) + len(spectra.layers)} weights: "
        f"{', '.join(names[:shown])}{more}. The checkpoint is damaged; download it again."
    )


def _print(checkpoint: Checkpoint, spectra: Spectra, frame: pd.DataFrame, top: int | None) -> None:
    planned = "energy_at_rank" in frame
    rows = [
        (
            row["name"],
            shape_text((row["out"], row["in"])),
            f"{row['sigma_max']:.4g}",
            f"{row['stable_rank']:.1f}",
            _number(row["effective_rank"], "{:.1f}"),
            *(_number(row[f"rank_{share}"], "{:.0f}") for share in (50, 90, 95, 99)),
            *((percent_text(row["energy_at_rank"]),) if planned else ()),
        )
        for row in frame.to_dict("records")
    ]
    columns = ("layer", "out x in", "σ1", "stable rank", "effective rank", "50 %", "90 %", "95 %", "99 %")
    how = "from the cache" if spectra.from_cache else f"in {seconds(spectra.seconds)}"
    what = f"the {top} largest singular values" if top else "all singular values"
    print_table(
        f"{checkpoint.name}: {what} of {len(rows)} linear weights {how} (each within {spectra.error:.0e} σ1)",
        (*columns, "energy at planned rank") if planned else columns,
        rows,
        note="50 % … 99 %: singular directions that hold this share of the energy (sum of σ²)."
        + (f" {checkpoint.note}" if checkpoint.note else ""),
    )


def _number(value: float | None, form: str) -> str:
    """A dash where a shortened spectrum does not reach the figure."""
    return "—" if value is None or value != value else form.format(value)


def _write(spectra: Spectra, frame: pd.DataFrame, path: Path, *, force: bool) -> None:
    if path.suffix.lower() != ".safetensors":
        write_table(frame, path, force=force)
        return
    from safetensors.numpy import save_file

    refuse_file(path, force=force)  # again: it may have come while the scan went on
    with atomic_file(path) as temporary:
        save_file({name: layer.singular_values for name, layer in spectra.layers.items()}, temporary)
