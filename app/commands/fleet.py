"""`loraxs fleet`: what many adapters weigh, cost and take to serve, methods side by side."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.options.common import Json, open_model
from app.options.storage import AdapterChoice, FleetChoice, takes_adapter_choice, takes_fleet_choice
from app.outputs import Force, refuse_file
from app.terminal import print_json, print_table, say
from app.units import bytes_text, money_text
from loraxs_core.errors import SettingsError
from loraxs_core.progress import seconds

if TYPE_CHECKING:
    import pandas as pd

    from analyzers.storage import Scenario


@takes_adapter_choice
@takes_fleet_choice
def run(
    choice: AdapterChoice,
    fleet: FleetChoice,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A catalogue name, a folder or a hub id.")] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="A saved question instead: gpt-3-one-million-users (the LoRA-XS paper's), a name of yours, or a JSON file."
        ),
    ] = None,
    save: Annotated[
        str | None, typer.Option(help="Save the question: under a name of yours, or in a file that ends in .json.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Storage, monthly cost, load time and residents of a fleet of adapters, and where LoRA-XS breaks even."""
    from analyzers.storage import find_scenario, keep_scenario

    if (model is None) == (scenario is None):
        raise SettingsError("Give a MODEL or a --scenario.")
    asked = find_scenario(scenario) if model is None else fleet.scenario(model, choice)
    if save and _is_file(save):
        refuse_file(Path(save), (".json",), force=force)
    checkpoint = open_model(asked.model, quiet=json)
    frame, meets = asked.frame(checkpoint), asked.meets(checkpoint)
    if save:
        if _is_file(save):
            refuse_file(Path(save), force=force)
            asked.save(save)
        else:
            keep_scenario(save, asked, force=force)
    if json:
        even = [
            {"against": one.against.method, "rank_by_bytes": one.rank_by_bytes, "rank_by_trainable": one.rank_by_trainable}
            for one in meets
        ]
        print_json({"scenario": dataclasses.asdict(asked), "methods": frame.to_dict("records"), "break_even": even})
        return
    _print(asked, frame)
    for one in meets:
        say(one.sentence)


def _is_file(save: str) -> bool:
    return Path(save).suffix == ".json" or any(mark in save for mark in (os.sep, "/"))


def _print(asked: Scenario, frame: pd.DataFrame) -> None:
    print_table(
        f"{asked.model}: {asked.adapters:,} adapters x {asked.replicas} copies x {asked.versions} versions, {asked.dtype}",
        ("method", "rank", "trained", "one file", "the fleet", "per month", "load one", "resident"),
        [
            (
                row["label"],
                row["rank"],
                f"{row['trainable']:,}",
                bytes_text(row["file_bytes"]),
                bytes_text(row["fleet_bytes"]),
                money_text(row["cost_per_month"]),
                seconds(row["load_seconds"]),
                f"{row['resident']:,}",
            )
            for row in frame.to_dict("records")
        ],
        note=f"Load one: over {asked.gigabits_per_second:g} Gbit/s. Resident: in {asked.memory_gib:g} GiB, shared matrices counted once. "
        + asked.note,
    )
