"""The command and the Python code that start the comparison which the Compare page asks for."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields

from analyzers.compare import SweepSettings
from analyzers.compare.variants import PLAN as ABLATED
from analyzers.compare.variants import PLANNED
from analyzers.methods import METHODS
from analyzers.plans import RankPlan
from analyzers.ranks import STRATEGIES
from app import state
from app.options.data import ALL, COUNTS, DataOptions
from app.options.execution import ExecutionOptions
from app.options.groups import spelled
from app.options.training import ALWAYS, TrainingOptions
from app.reproduce import adapters
from loraxs_core.checkpoint import Checkpoint


def command(sweep: SweepSettings, checkpoint: Checkpoint) -> str:
    """`loraxs compare` with everything that `sweep` says; a plan that is not the one in use, and a configuration of the user's own, are made
    by commands before it."""
    model, before, words = shlex.quote(sweep.model), [], []
    for plan in _given(sweep).values():
        file, made = _plan_words(plan, model, checkpoint)
        before += made
        words.append(f"--plan {shlex.quote(file)}")
    for name, config in sweep.configs.items():
        before.append(f"printf '%s' {shlex.quote(json.dumps(config))} > {shlex.quote(name)}.json")
    rank = sweep.ranks.get(PLANNED) or sweep.rank
    if rank and (not sweep.plans or sweep.ablate):
        words.append(f"--rank {rank}")
    others = [
        f"{name}={rank}" for name, rank in sweep.ranks.items() if name != PLANNED and rank != sweep.method(name).default_rank
    ]
    if others:
        words.append(f"--ranks {','.join(others)}")
    if sweep.ablate:
        words.append(f"--ablate {','.join(sweep.ablate)}")
    if sweep.targets != SweepSettings.targets:
        words.append(f"--targets {shlex.quote(sweep.targets if isinstance(sweep.targets, str) else ','.join(sweep.targets))}")
    words += [
        f"--learning-rate {shlex.quote(name)}={','.join(f'{rate:.12g}' for rate in sweep.rates(name))}"
        for name in sweep.learning_rates
    ]
    if sweep.tune_lr:
        words.append("--tune-lr")
    words.append(spelled(ExecutionOptions, {option.name: getattr(sweep, option.name) for option in fields(ExecutionOptions)}))
    counts = {name: str(getattr(sweep, name) or ALL) for name in COUNTS}
    words.append(spelled(DataOptions, {**sweep.columns, "evaluations": sweep.evaluations, **counts}))
    if sweep.data:
        words.append(f"--data {shlex.quote(sweep.data)}")
    if sweep.report_to:
        words.append(f"--report-to {','.join(sweep.report_to)}")
    methods = ",".join(f"{name}.json" if name in sweep.configs else name for name in sweep.methods)
    line = f"loraxs compare {model} --task {shlex.quote(sweep.task)} --methods {shlex.quote(methods)} " + spelled(
        TrainingOptions, TrainingOptions.values(sweep), always=ALWAYS
    )
    return "\n".join([*before, " ".join([line, *filter(None, words), "--out DIR"])])


def _given(sweep: SweepSettings) -> dict[str, RankPlan]:
    """The plans that have to be said: all but those that the ablation of plans makes itself."""
    made = STRATEGIES if ABLATED in sweep.ablate else ()
    return {label: plan for label, plan in sweep.rank_plans().items() if label not in made}


def _plan_words(plan: RankPlan, model: str, checkpoint: Checkpoint) -> tuple[str, list[str]]:
    """(the file of a plan, the commands that make it)."""
    if _in_use(plan):
        return str(state.plan_file()), []
    layers = adapters.target_flags(adapters.targets(checkpoint, plan))
    file = f"{plan.strategy}.json"
    made = (
        f"loraxs plan {model} --strategy {plan.strategy} --parameters {plan.budget} --alpha-over-r {plan.alpha_over_r:g}{layers} "
        f"--out {file}"
    )
    return file, [made]


def python(sweep: SweepSettings, checkpoint: Checkpoint) -> str:
    document = {
        key: value
        for key, value in sweep.to_dict().items()
        if key not in ("plans", "model") and value != getattr(SweepSettings(sweep.model), key)
    }
    lines = "".join(f"    {key}={value!r},\n" for key, value in document.items())
    imports, plans = "", ""
    if ABLATED in sweep.ablate:
        imports = "from analyzers.compare.variants import ablation_plans\n"
        rank = sweep.ranks.get(PLANNED) or sweep.rank or METHODS[PLANNED].default_rank
        plans += f"        **ablation_plans(open_model({sweep.model!r}), {rank}, {sweep.targets!r}),\n"
    for label, plan in _given(sweep).items():
        if _in_use(plan):
            made = f"RankPlan.load({str(state.plan_file())!r})"
        else:
            layers = "".join(f", targets={names!r}" for names in adapters.targets(checkpoint, plan).values())
            made = f"make_plan(open_model({sweep.model!r}), {plan.strategy!r}, budget=Budget.parameters({plan.budget}), alpha_over_r={plan.alpha_over_r!r}{layers})"
        plans += f"        {label!r}: {made},\n"
    if plans:
        imports += "from analyzers.ranks import Budget, RankPlan, make_plan\nfrom sample_models import open_model\n"
        lines += f"    plans={{\n{plans}    }},\n"
    return (
        f"from analyzers.compare import SweepSettings, start_sweep\n{imports}"
        f"\nrun = start_sweep(SweepSettings(\n    {sweep.model!r},\n{lines}))\nprint(run.path, run.status())"
    )


def _in_use(plan: RankPlan) -> bool:
    file = state.plan_file()
    return file is not None and file.stem == state.identity(plan)
