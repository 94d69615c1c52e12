"""The command and the Python code that ask exactly the question a page of storage figures answers."""

from __future__ import annotations

import shlex
from dataclasses import fields

from analyzers.methods import METHODS
from analyzers.storage import Scenario
from analyzers.units import GIB
from app import state
from app.options.groups import spelled
from app.options.storage import AdapterChoice, FleetChoice


def fleet_command(scenario: Scenario) -> str:
    """`loraxs fleet` with every setting that is not the command's own default, and those people change most."""
    kept = {"replicas": scenario.replicas, "price": scenario.price_per_gb_month}
    fleet = {
        "adapters": scenario.adapters,
        "versions": scenario.versions,
        "loads": scenario.loads_per_month,
        "request_price": scenario.price_per_1000_loads,
        "egress": scenario.egress_price_per_gb,
        "link": scenario.gigabits_per_second,
        "memory": scenario.memory_gib,
        "base_gib": scenario.base_bytes_in_memory / GIB,
    }
    words = ["loraxs fleet", shlex.quote(scenario.model), f"--methods {','.join(scenario.methods)}", *_layers(scenario)]
    words.append(spelled(AdapterChoice, kept, always=kept))
    return " ".join([*words, spelled(FleetChoice, fleet, always=("adapters", "link", "memory"))])


def run_command(scenario: Scenario, run: dict) -> str:
    """`loraxs size` for what a training run writes. run: the keyword arguments of `run_bytes`."""
    keep = f" --keep {run['keep']}" if run["keep"] else ""
    return (
        f"loraxs size {shlex.quote(scenario.model)} --method {','.join(scenario.methods)} {' '.join(_layers(scenario))} "
        f"--steps {run['steps']} --save-every {run['save_every']}{keep} --optimizer {run['optimizer']}"
    )


def python(scenario: Scenario, run: dict) -> str:
    """The same as code: the scenario with every setting that is not its default, its table, break-even ranks, the run."""
    defaults = {field.name: field.default for field in fields(Scenario)}
    given = {name: getattr(scenario, name) for name in defaults if getattr(scenario, name) != defaults[name]}
    if scenario.plan is not None:
        given["plan"] = _Code(f"RankPlan.load({str(state.plan_file())!r}).to_dict()")
    values = "".join(f"    {name}={value!r},\n" for name, value in given.items())
    return (
        ("from analyzers.ranks import RankPlan\n" if scenario.plan is not None else "")
        + "from analyzers.storage import Scenario, run_bytes\nfrom sample_models import open_model\n\n"
        + f"scenario = Scenario(\n{values})\nmodel = open_model(scenario.model)\n"
        + "print(scenario.frame(model).to_string())\n"
        + "for meeting in scenario.meets(model):\n    print(meeting.sentence)\n"
        + "for method, size in scenario.sizes(model).items():\n"
        + f"    print(method, run_bytes(size, **{run!r}).to_dict())"
    )


class _Code(str):
    """An expression, not the text of one."""

    def __repr__(self) -> str:
        return str(self)


def _layers(scenario: Scenario) -> list[str]:
    words = [f"--plan {shlex.quote(str(state.plan_file()))}"] if scenario.plan is not None else []
    words += [f"--rank {name}={rank}" for name, rank in (scenario.ranks or {}).items() if METHODS[name].ranked]
    words += [f"--targets {scenario.targets}"] if scenario.plan is None and scenario.targets != "paper" else []
    words += [f"--dtype {scenario.dtype}"]
    words += [f"--task {scenario.task}"] if scenario.task else []
    return words + (["--vera-seeded"] if scenario.options else [])
