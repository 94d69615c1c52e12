"""`loraxs fleet`: what many adapters weigh, cost and take to serve, methods side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from app.commands.arguments import Json, Targets, open_model
from app.terminal import print_json, print_table, say
from app.units import bytes_text, money_text
from loraxs_core.errors import SettingsError
from loraxs_core.progress import seconds


def run(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A catalogue name, a folder or a hub id.")] = None,
    scenario: Annotated[
        str | None, typer.Option(help="A saved question: a JSON file, or gpt-3-one-million-users, the LoRA-XS paper's example.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods, comma-separated.")] = "full,lora,vera,lora-xs",
    rank: Annotated[list[str] | None, typer.Option(help="METHOD=RANK, or RANK for all; may be given several times.")] = None,
    targets: Targets = "paper",
    dtype: Annotated[str, typer.Option(help="Precision of the saved adapters.")] = "float32",
    adapters: Annotated[int, typer.Option(help="Adapters: one a task or a user.")] = 1000,
    replicas: Annotated[int, typer.Option(help="Copies of each.")] = 1,
    versions: Annotated[int, typer.Option(help="Versions retained of each, the current one included.")] = 1,
    price: Annotated[float, typer.Option(help="$ per GB and month.")] = 0.023,
    loads: Annotated[float, typer.Option(help="Loads from the store a month, all adapters together.")] = 0.0,
    request_price: Annotated[float, typer.Option(help="$ per 1,000 loads.")] = 0.0004,
    egress: Annotated[float, typer.Option(help="$ per GB that leaves the store.")] = 0.0,
    link: Annotated[float, typer.Option(help="Gigabits a second of the link adapters are loaded over.")] = 1.0,
    memory: Annotated[float, typer.Option(help="GiB of memory that adapters stay resident in.")] = 80.0,
    base_gib: Annotated[float, typer.Option(help="GiB of it that the base model takes.")] = 0.0,
    save: Annotated[Path | None, typer.Option(help="Save the question as a scenario.")] = None,
    json: Json = False,
) -> None:
    """Storage, monthly cost, load time and residents of a fleet of adapters, and where LoRA-XS breaks even."""
    from analyzers.storage import SCENARIOS, Scenario, break_even

    if (model is None) == (scenario is None):
        raise SettingsError("Give a MODEL or a --scenario.")
    if scenario is not None:
        if scenario not in SCENARIOS and not Path(scenario).is_file():
            raise SettingsError(f"There is no scenario file {scenario}; there is the built-in {', '.join(SCENARIOS)}.")
        asked = SCENARIOS.get(scenario) or Scenario.load(scenario)
    else:
        chosen = tuple(name.strip() for name in methods.split(",") if name.strip())
        asked = Scenario(
            model=model,
            methods=chosen,
            ranks=_ranks(rank or [], chosen),
            targets=targets,
            dtype=dtype,
            adapters=adapters,
            replicas=replicas,
            versions=versions,
            price_per_gb_month=price,
            loads_per_month=loads,
            price_per_1000_loads=request_price,
            egress_price_per_gb=egress,
            gigabits_per_second=link,
            memory_gib=memory,
            base_bytes_in_memory=base_gib * 2**30,
        )
    checkpoint = open_model(asked.model, quiet=json)
    frame = asked.frame(checkpoint)
    against = [name for name in asked.methods if name in ("lora", "vera")]
    meets = [
        break_even(
            checkpoint, name, rank=(asked.ranks or {}).get(name), targets=asked.targets, dtype=asked.dtype, task=asked.task
        )
        for name in against
    ]
    if save:
        asked.save(save)
    if json:
        even = [
            {"against": one.against.method, "rank_by_bytes": one.rank_by_bytes, "rank_by_trainable": one.rank_by_trainable}
            for one in meets
        ]
        print_json({"scenario": dataclasses.asdict(asked), "methods": frame.to_dict("records"), "break_even": even})
        return
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
    for one in meets:
        say(one.sentence)


def _ranks(given: list[str], methods: tuple[str, ...]) -> dict[str, int]:
    ranks: dict[str, int] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        if not value.isdigit() or (equals and name not in methods):
            raise SettingsError(f"--rank takes RANK or METHOD=RANK with one of the methods compared, not {text!r}.")
        ranks.update({name: int(value)} if equals else dict.fromkeys((m for m in methods if m != "full"), int(value)))
    return ranks
