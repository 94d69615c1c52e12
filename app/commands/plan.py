"""`loraxs plan`: a rank for every layer under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzers.plans import RankPlan
from analyzers.plans.export import text
from app.options.common import Json, Out, open_model, scan_model
from app.options.plan import Fits, PlanChoice, takes_plan_choice
from app.outputs import Force, refuse_file
from app.tables import write_table
from app.terminal import print_json, print_table, print_text, say
from app.units import bytes_text, percent_text, shape_text
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from loraxs_core.checkpoint import Checkpoint


@takes_plan_choice
def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A catalogue name, a local folder, or a hub id; or the word diff, with two plans after it."
        ),
    ],
    choice: PlanChoice,
    plans: Annotated[list[Path] | None, typer.Argument(metavar="[A B]", help="After diff: two plan.json to compare.")] = None,
    signals: Annotated[
        Path | None,
        typer.Option(help="What a task says about ranks, as `loraxs measure --out` wrote it; some strategies need it."),
    ] = None,
    fits: Annotated[
        str | None,
        typer.Option(help="In place of a budget: the largest plan whose training fits this GPU (memory in GB, or a name)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="With --fits: sequences a step.")] = Fits.batch,
    sequence: Annotated[int, typer.Option(help="With --fits: tokens a sequence.")] = Fits.sequence,
    out: Out = None,
    force: Force = False,
    export: Annotated[
        str | None,
        typer.Option(help="Print 'lora-xs' or 'lora' (PEFT configuration), 'peft-yaml', 'axolotl', 'csv' or 'python' instead."),
    ] = None,
    json: Json = False,
) -> None:
    """A rank for every layer: the plan stays within the budget. Uniform ranks are the baseline. `plan diff A B` compares two plans."""
    from analyzers import ranks
    from analyzers.storage import adapter_size

    if model == "diff" or plans:
        _diff(model, plans or [], out, force=force, json=json)
        return
    settings = choice.settings()
    chosen = ranks.strategy(settings.strategy)
    if out:
        refuse_file(out, (".json", ".csv"), force=force)
    checkpoint = open_model(model, weights=chosen.needs_spectra, quiet=json)
    spectra = scan_model(checkpoint, quiet=json) if chosen.needs_spectra else None
    said = ranks.Signals.load(signals) if signals else None
    if fits:
        if choice.budgets():
            raise SettingsError("--fits finds the budget; leave the other budget out.")
        from analyzers.memory import MemorySettings, find_gpu

        step = MemorySettings(batch=batch, sequence=sequence)
        plan = ranks.largest_that_fits(checkpoint, settings, step, find_gpu(fits), spectra=spectra, signals=said)
    else:
        plan = ranks.make_plan(checkpoint, settings=settings, spectra=spectra, signals=said)
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


def _diff(word: str, plans: list[Path], out: Path | None, *, force: bool, json: bool) -> None:
    """What changes from the first plan to the second, layer by layer and role by role."""
    if word != "diff" or len(plans) != 2:
        raise SettingsError("To compare two plans, write: loraxs plan diff A.json B.json.")
    if out:
        refuse_file(out, (".csv",), force=force)
    before, after = (RankPlan.load(path) for path in plans)
    frame = before.diff(after)
    if out:
        write_table(frame, out, force=force)
        say(f"Differences written to {out}.")
    if json:
        print_json(
            {
                "before": str(plans[0]),
                "after": str(plans[1]),
                "trainable_before": before.trainable,
                "trainable_after": after.trainable,
                "layers": frame.to_dict("records"),
            }
        )
        return
    more, less = (int(abs(frame["trainable_change"].clip(**side).sum())) for side in ({"lower": 0}, {"upper": 0}))
    print_table(
        f"{before.strategy} ({before.model}, {before.trainable:,} trained numbers) to {after.strategy} ({after.model}, "
        f"{after.trainable:,}): {len(frame)} layers differ",
        ("layer", "role", "rank before", "rank after", "change", "trained numbers"),
        [
            (
                row["name"],
                row["role"],
                str(row["rank_before"]),
                str(row["rank_after"]),
                f"{row['rank_change']:+d}",
                f"{row['trainable_change']:+,}",
            )
            for row in frame.to_dict("records")
        ],
        note=f"{more:,} trained numbers more in some layers, {less:,} fewer in others."
        if len(frame)
        else "The two plans give every layer the same rank.",
    )


def _write(plan: RankPlan, checkpoint: Checkpoint, path: Path, *, force: bool) -> None:
    """plan.json by default; a CSV table when the name says so."""
    if path.suffix.lower() == ".csv":
        write_table(plan.frame(checkpoint), path, force=force)
    else:
        refuse_file(path, force=force)
        plan.save(path)
    say(f"Plan written to {path}.")
