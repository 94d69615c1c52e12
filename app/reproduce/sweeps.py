"""The command and the Python code that start the comparison which the Compare page asks for."""

from __future__ import annotations

import shlex

from analyzers.compare import SweepSettings
from analyzers.plans import RankPlan
from app import state
from app.options.data import ALL, COUNTS, DataOptions
from app.options.execution import ExecutionOptions
from app.options.groups import spelled
from app.reproduce import adapters
from loraxs_core.checkpoint import Checkpoint


def command(sweep: SweepSettings, checkpoint: Checkpoint) -> str:
    """`loraxs compare` with the plans, ranks and rates chosen; a plan that is not the one in use is made by a command before it."""
    model, before, words = shlex.quote(sweep.model), [], []
    for plan in sweep.rank_plans().values():
        if _in_use(plan):
            words.append(f"--plan {shlex.quote(str(state.plan_file()))}")
        else:
            layers = adapters.target_flags(adapters.targets(checkpoint, plan))
            before.append(
                f"loraxs plan {model} --strategy {plan.strategy} --parameters {plan.budget} --alpha-over-r {plan.alpha_over_r:g}{layers} "
                f"--out {plan.strategy}.json"
            )
            words.append(f"--plan {plan.strategy}.json")
    if not sweep.plans and "lora-xs" in sweep.ranks:
        words.append(f"--rank {sweep.ranks['lora-xs']}")
    words += [f"--learning-rate {name}={','.join(f'{rate:g}' for rate in sweep.rates(name))}" for name in sweep.learning_rates]
    if sweep.tune_lr:
        words.append("--tune-lr")
    words.append(spelled(ExecutionOptions, {name: getattr(sweep, name) for name in ("executor", "workers", "processes")}))
    further = [
        f"rank {rank} of {sweep.method(name).label}"
        for name, rank in sweep.ranks.items()
        if name != "lora-xs" and rank != sweep.method(name).default_rank
    ]
    counts = {name: str(getattr(sweep, name) or ALL) for name in COUNTS}
    words += [spelled(DataOptions, {**sweep.columns, "evaluations": sweep.evaluations, **counts})]
    if sweep.data:
        words.append(f"--data {shlex.quote(sweep.data)}")
    if further:
        before.append(f"# The command has no option for {', '.join(further)}; Python takes them.")
    line = (
        f"loraxs compare {model} --task {shlex.quote(sweep.task)} --methods {','.join(sweep.methods)} --seeds {sweep.seed_count} "
        f"--steps {sweep.steps} --batch {sweep.batch} --sequence {sweep.sequence}"
    )
    return "\n".join([*before, " ".join([line, *filter(None, words), "--out DIR"])])


def python(sweep: SweepSettings, checkpoint: Checkpoint) -> str:
    document = {
        key: value
        for key, value in sweep.to_dict().items()
        if key not in ("plans", "model") and value != getattr(SweepSettings(sweep.model), key)
    }
    lines = "".join(f"    {key}={value!r},\n" for key, value in document.items())
    imports, plans = "", ""
    for label, plan in sweep.rank_plans().items():
        if _in_use(plan):
            made = f"RankPlan.load({str(state.plan_file())!r})"
        else:
            layers = "".join(f", targets={names!r}" for names in adapters.targets(checkpoint, plan).values())
            made = f"make_plan(open_model({sweep.model!r}), {plan.strategy!r}, budget=Budget.parameters({plan.budget}), alpha_over_r={plan.alpha_over_r!r}{layers})"
        plans += f"        {label!r}: {made},\n"
    if plans:
        imports = "from analyzers.ranks import Budget, RankPlan, make_plan\nfrom sample_models import open_model\n"
        lines += f"    plans={{\n{plans}    }},\n"
    return (
        f"from analyzers.compare import SweepSettings, start_sweep\n{imports}"
        f"\nrun = start_sweep(SweepSettings(\n    {sweep.model!r},\n{lines}))\nprint(run.path, run.status())"
    )


def _in_use(plan: RankPlan) -> bool:
    file = state.plan_file()
    return file is not None and file.stem == state.identity(plan)
