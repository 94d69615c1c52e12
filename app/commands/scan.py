"""`loraxs scan`: the singular values of every linear weight, one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.options.common import Json, Minus, Model, Out, PlanFile, load_plan, open_model, scan_model
from app.outputs import Force, refuse_file
from app.tables import TABLES, write_table
from app.terminal import print_json, print_table
from app.units import percent_text, shape_text
from loraxs_core.paths import atomic_file
from loraxs_core.progress import seconds

if TYPE_CHECKING:
    from analyzers.spectra import Spectra


ENDINGS = (*TABLES, ".safetensors")


def run(
    model: Model,
    minus: Minus = None,
    plan: PlanFile = None,
    top: Annotated[
        int | None, typer.Option(help="Only this many singular values of each layer; the energy beyond stays exact.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="float32 arithmetic: errors up to 1e-4 of the largest singular value.")
    ] = False,
    parts: Annotated[
        bool, typer.Option("--parts", help="Fused projections also part by part (query, key, value; gate, up).")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Matrices worked on at once; one a core when left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or an accelerator as PyTorch names it, such as cuda.")] = "cpu",
    engine: Annotated[str, typer.Option(help="local, or ray for a Ray cluster that shares the file system.")] = "local",
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use and fill the cache of spectra.")] = True,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """All singular values of every linear weight, with norms and ranks per layer. Exact; cached, so the second time is instant.

    --out takes .csv, .parquet or .json for the table, .safetensors for the singular values themselves.
    """
    ranks = load_plan(plan)
    if out:
        refuse_file(out, ENDINGS, force=force)
    checkpoint = open_model(model, minus, weights=True, quiet=json)
    spectra = scan_model(
        checkpoint, quiet=json, top=top, fast=fast, parts=parts, jobs=jobs, device=device, engine=engine, cache=cache
    )
    frame = spectra.frame(ranks)
    if out:
        _write(spectra, frame, out, force=force)
    if json:
        layers = [{**row, "shape": [row["out"], row["in"]]} for row in frame.to_dict("records")]
        told = {"seconds": spectra.seconds, "from_cache": spectra.from_cache, "note": checkpoint.note}
        print_json({"model": checkpoint.name, "layers": layers, **told})
        return
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


def _write(spectra: Spectra, frame, path: Path, *, force: bool) -> None:
    if path.suffix.lower() != ".safetensors":
        write_table(frame, path, force=force)
        return
    from safetensors.numpy import save_file

    refuse_file(path, force=force)  # again: it may have come while the scan went on
    with atomic_file(path) as temporary:
        save_file({name: layer.singular_values for name, layer in spectra.layers.items()}, temporary)
