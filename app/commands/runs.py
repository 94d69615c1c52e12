"""`loraxs runs`: the comparisons on this machine, how they are doing, and stopping or continuing one."""

from __future__ import annotations

from typing import Annotated

import typer

from app.options.common import Json
from app.terminal import print_json, print_table, say
from app.units import percent_text
from loraxs_core.errors import SettingsError
from loraxs_core.progress import seconds


def run(
    name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's name or folder; all runs when left out.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop it. Finished trials are kept.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cancelled, failed or crashed.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="With --resume: also where torch, transformers, PEFT or this program are not as it began with."
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that the others are set against, seed by seed; as the table calls it, or its name."),
    ] = None,
    json: Json = False,
) -> None:
    """List comparisons, or show, cancel or resume one."""
    from analyzers.compare import find_run
    from app.results_table import RESULT_COLUMNS, paired_records, say_paired, say_tuned, summary_rows, tuning_records

    if name is None:
        _list(json)
        return
    chosen = find_run(name)
    if cancel:
        chosen.cancel()
    if force and not resume:
        raise SettingsError("--force goes with --resume.")
    if resume:
        if force:
            chosen.accept_software()
        chosen.start()
    status = chosen.status()
    summary = chosen.summary()
    if json:
        print_json(
            {
                "run": chosen.path,
                **{name: getattr(status, name) for name in ("state", "fraction", "eta_seconds", "message", "error")},
                "summary": summary.to_dict("records"),
                "paired": paired_records(chosen, baseline),
                "tuning": tuning_records(chosen),
                "trials": chosen.results().to_dict("records"),
            }
        )
        return
    left = f", {seconds(status.eta_seconds)} left" if status.is_running and status.eta_seconds is not None else ""
    say(f"{chosen.name}: {status.state}, {percent_text(status.fraction)} done{left}. {status.error or status.message}")
    for remark in chosen.remarks():
        say(remark)
    if len(summary):
        print_table(f"{chosen.settings.model} on {chosen.settings.task}", RESULT_COLUMNS, summary_rows(summary))
        say_paired(chosen, baseline)
        say_tuned(chosen)


def _list(json: bool) -> None:
    """Every run; of one that cannot be read, why."""
    from analyzers.compare import survey_runs

    runs = survey_runs()
    if json:
        states = [(run.path, run.status()) for run in runs.sound]
        print_json(
            [{"run": path, "state": status.state, "fraction": status.fraction} for path, status in states]
            + [{"run": broken.path, "state": "unreadable", "error": broken.reason} for broken in runs.broken]
        )
        return
    rows = []
    for run in runs.sound:
        status, settings = run.status(), run.settings
        done = percent_text(status.fraction)
        rows.append((run.name, status.state, done, settings.model, settings.task, ", ".join(settings.methods)))
    rows += [(broken.name, "unreadable", "", "", "", "") for broken in runs.broken]
    columns = ("run", "state", "done", "model", "task", "methods")
    print_table("Comparisons, newest first", columns, rows, note="" if rows else "None yet.")
    for broken in runs.broken:
        say(f"{broken.name}: {broken.reason}")
