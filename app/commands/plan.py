"""`loraxs plan`: a rank for every layer under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzers.plans import RankPlan
from analyzers.plans.export import text
from app.options.common import Json, Model, Out, open_model, scan_model
from app.options.plan import PlanChoice, takes_plan_choice
from app.outputs import Force, refuse_file
from app.tables import write_table
from app.terminal import print_json, print_table, print_text, say
from app.units import bytes_text, percent_text, shape_text

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint


@takes_plan_choice
def run(
    model: Model,
    choice: PlanChoice,
    out: Out = None,
    force: Force = False,
    export: Annotated[
        str | None, typer.Option(help="Print 'lora-xs' or 'lora' (PEFT configuration), 'csv' or 'python' instead.")
    ] = None,
    json: Json = False,
) -> None:
    """A rank for every layer: the plan's sum of r² stays within the budget. Uniform ranks are the baseline."""
    from analyzers import ranks
    from analyzers.storage import adapter_size

    settings = choice.settings()
    chosen = ranks.strategy(settings.strategy)
    if out:
        refuse_file(out, (".json", ".csv"), force=force)
    checkpoint = open_model(model, weights=chosen.needs_spectra, quiet=json)
    spectra = scan_model(checkpoint, quiet=json) if chosen.needs_spectra else None
    plan = ranks.make_plan(checkpoint, settings=settings, spectra=spectra)
    if out:
        _write(plan, checkpoint, out, force=force)
    if export:
        print_text(text(plan, export))
        return
    size = adapter_size(checkpoint, "lora-xs", plan=plan)
    if json:
        print_json({**plan.to_dict(), "file_bytes": size.file_bytes})
        return
    frame = plan.frame(checkpoint, spectra)
    rows = [
        (
            row["name"],
            row["role"],
            shape_text((row["out"], row["in"])),
            str(row["rank"]),
            f"{row['trainable']:,}",
            *((percent_text(row["energy_at_rank"]),) if "energy_at_rank" in frame else ()),
        )
        for row in frame.to_dict("records")
    ]
    columns = ("layer", "role", "out x in", "rank", "trained numbers (r²)")
    print_table(
        f"{plan.strategy} plan for {checkpoint.name}: {plan.trainable:,} trained numbers of a budget of {plan.budget:,}, "
        f"{bytes_text(size.file_bytes)} on disk",
        (*columns, "energy at rank") if "energy_at_rank" in frame else columns,
        rows,
        note=" ".join((plan.evidence, *plan.notes)),
    )


def _write(plan: RankPlan, checkpoint: Checkpoint, path: Path, *, force: bool) -> None:
    """plan.json by default; a CSV table when the name says so."""
    if path.suffix.lower() == ".csv":
        write_table(plan.frame(checkpoint), path, force=force)
    else:
        refuse_file(path, force=force)
        plan.save(path)
    say(f"Plan written to {path}.")
