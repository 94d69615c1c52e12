"""`loraxs scan`: the singular values of every linear weight, one tensor at a time."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.arguments import Json, Model, Out, PlanFile, load_plan, open_model, scan_model
from app.terminal import print_json, print_table
from app.units import percent_text, shape_text
from loraxs_core.progress import seconds


def run(
    model: Model,
    plan: PlanFile = None,
    jobs: Annotated[int | None, typer.Option(help="Matrices worked on at once; one a core when left out.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use and fill the cache of spectra.")] = True,
    out: Out = None,
    json: Json = False,
) -> None:
    """All singular values of every linear weight, with norms and ranks per layer. Exact; cached, so the second time is instant."""
    from app.tables import write_table

    checkpoint = open_model(model, quiet=json)
    spectra = scan_model(checkpoint, quiet=json, jobs=jobs, cache=cache)
    frame = spectra.frame(load_plan(plan))
    if out:
        write_table(frame, out)
    if json:
        layers = [{**row, "shape": [row["out"], row["in"]]} for row in frame.to_dict("records")]
        print_json({"model": checkpoint.name, "layers": layers, "seconds": spectra.seconds, "from_cache": spectra.from_cache})
        return
    planned = "energy_at_rank" in frame
    rows = [
        (
            row["name"],
            shape_text((row["out"], row["in"])),
            f"{row['sigma_max']:.4g}",
            f"{row['stable_rank']:.1f}",
            f"{row['effective_rank']:.1f}",
            *(str(int(row[f"rank_{share}"])) for share in (50, 90, 95, 99)),
            *((percent_text(row["energy_at_rank"]),) if planned else ()),
        )
        for row in frame.to_dict("records")
    ]
    columns = ("layer", "out x in", "σ1", "stable rank", "effective rank", "50 %", "90 %", "95 %", "99 %")
    how = "from the cache" if spectra.from_cache else f"in {seconds(spectra.seconds)}"
    print_table(
        f"{checkpoint.name}: spectra of {len(rows)} linear weights {how}",
        (*columns, "energy at planned rank") if planned else columns,
        rows,
        note="50 % … 99 %: singular directions that hold this share of the energy (sum of σ²).",
    )
