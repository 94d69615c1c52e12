"""Compare: race methods and rank plans on a task, watch them live, and read what came out."""

from __future__ import annotations

import shlex
from collections import Counter

import streamlit as st

from analyzers.compare import TASKS, BrokenRun, RunFolder, SweepSettings, open_task, start_sweep, survey_runs
from analyzers.methods import MAIN_METHODS, METHODS
from analyzers.plans import RankPlan
from analyzers.ranks import uniform_baseline
from app import components, state
from app.forms import bound
from app.panels import one_run
from app.reproduce import adapters
from app.text import markdown
from app.units import count_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError

CONTROL = ("head-only", *MAIN_METHODS)


def show() -> None:
    """The page."""
    components.heading(
        "Compare", "LoRA, VeRA and LoRA-XS on one task: same data order, same head at the start, a learning rate each."
    )
    form, results = components.panes([1, 2.6], "compare")
    with form, components.errors():
        _new(state.checkpoint())
    with results, components.errors():
        found = survey_runs()
        _broken(found.broken)
        runs = {run.name: run for run in found.sound}
        if not runs:
            st.info(
                "No comparison yet. Choose a task and methods to the left and start one: it runs as a process of its own, its curves "
                "are drawn here as they grow, and it goes on when this page is closed.",
                icon=":material/lightbulb:",
            )
            return
        one_run.show(_chosen(runs), runs)


def _broken(broken: list[BrokenRun]) -> None:
    """Run folders that cannot be read, and why."""
    if not broken:
        return
    with st.expander(f"{len(broken)} run folder{'s' * (len(broken) > 1)} cannot be read", icon=":material/folder_off:"):
        for run in broken:
            st.text(f"{run.name}: {run.reason}")


def _chosen(runs: dict[str, RunFolder]) -> RunFolder:
    """The run on show: named by the address, else the newest."""
    if st.session_state.get("run") not in runs:
        st.session_state.pop("run", None)
    name = st.selectbox("Run (newest first)", list(runs), **bound("run", _labels(runs).get))
    return runs[name]


def _labels(runs: dict[str, RunFolder]) -> dict[str, str]:
    """Name -> line in the list. A browser knows an option by its line alone: no two may be the same, and none may change later."""
    lines = {name: _line(run) for name, run in runs.items()}
    often = Counter(lines.values())
    return {name: f"{line}  ·  {name}" if often[line] > 1 else line for name, line in lines.items()}


def _line(run: RunFolder) -> str:
    """A run in the list; nothing that changes while it goes on (see `_labels`)."""
    settings = run.settings
    methods = ", ".join(METHODS[name].label for name in settings.methods)
    when = run.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{when}  ·  {settings.model} on {settings.task}  ·  {methods}"


def _new(checkpoint: Checkpoint) -> None:
    """The settings of a new comparison."""
    st.subheader("New comparison", anchor=False)
    if not checkpoint.has_weights:
        components.needs(
            f"{checkpoint.name} is an architecture without weights, so it cannot be trained.", "model", "Choose another model"
        )
        return
    settings = _settings()
    if settings is None:
        return
    with components.errors():
        sweep = SweepSettings(model=state.model_name(), **settings)
        trials = sweep.trials()
        st.caption(f"{len(trials)} trials of {sweep.steps} steps, one after the other.")
        if st.button("Start", type="primary", icon=":material/play_arrow:", key="start", width="stretch"):
            st.session_state["run"] = start_sweep(sweep).name
            st.rerun()
        components.reproduce(_command(sweep, checkpoint), _python(sweep, checkpoint))


def _settings() -> dict | None:
    task = st.selectbox(
        "Task", list(TASKS), index=list(TASKS).index("stsb"), accept_new_options=True, **bound("task", lambda name: TASKS[name].label if name in TASKS else name), help="Or type csv:PATH for a file of your own with the columns text, label and, for pairs, text_b.",
    )  # fmt: skip
    try:
        found = open_task(task)
    except SettingsError as error:
        st.error(markdown(error), icon=":material/error:")
        return None
    st.caption(markdown(found.summary))
    if found.remark:
        st.warning(markdown(found.remark), icon=":material/warning:")
    if missing := found.missing():
        st.warning(markdown(missing), icon=":material/cloud_off:")
    methods = st.multiselect(
        "Methods",
        list(METHODS),
        default=list(CONTROL),
        **bound("methods", lambda name: METHODS[name].label),
    )
    plans, ranks = _ranks(methods)
    seeds, steps = st.columns(2)
    batch, sequence = st.columns(2)
    settings = {
        "task": task,
        "methods": methods,
        "plans": plans,
        "ranks": ranks,
        "seeds": int(
            seeds.number_input("Seeds", 1, 50, 1, **bound("seeds"), help="With several, the results carry 95 % intervals.")
        ),
        "steps": int(steps.number_input("Steps a trial", 1, 1_000_000, 200, step=50, **bound("steps"))),
        "batch": int(batch.number_input("Batch", 1, 4096, 32, **bound("compare-batch"))),
        "sequence": int(sequence.number_input("Tokens a text", 4, 8192, 128, step=32, **bound("compare-sequence"))),
    }
    with st.expander("Learning rates and evaluation", icon=":material/tune:"):
        settings["learning_rates"] = {name: rates for name in methods if (rates := _rates(name))}
        settings["evaluations"] = int(st.number_input("Evaluations a trial", 1, 100, 5, **bound("evaluations")))
        settings["test_examples"] = st.number_input(
            "Test examples at most", 1, 1_000_000, None, placeholder="all", **bound("test-examples")
        )
        settings["validation_examples"] = st.number_input(
            "Validation examples at most", 1, 1_000_000, 512, **bound("validation-examples")
        )
    return settings


def _ranks(methods: list[str]) -> tuple[dict, dict]:
    """(plans of LoRA-XS by label, ranks of the other methods)."""
    plan, plans = state.plan(), {}
    if "lora-xs" in methods and plan is not None:
        label = f"{plan.strategy} plan ({count_text(plan.trainable)})"
        if st.toggle(f"LoRA-XS by the plan in use: {markdown(label)}", value=True, **bound("compare-by-plan")):
            plans[label] = plan
            if plan.strategy != "uniform" and st.toggle("and uniform ranks at the same budget", **bound("compare-uniform")):
                uniform = uniform_baseline(state.checkpoint(), plan)
                plans[f"uniform ({count_text(uniform.trainable)})"] = uniform
    ranked = [name for name in methods if METHODS[name].ranked and not (name == "lora-xs" and plans)]
    ranks = {}
    for start in range(0, len(ranked), 3):
        for column, name in zip(st.columns(3), ranked[start : start + 3], strict=False):
            ranks[name] = int(
                column.number_input(
                    f"{METHODS[name].label} rank",
                    1,
                    8192,
                    METHODS[name].default_rank,
                    **bound(f"compare-rank-{name}"),
                )
            )
    return plans, ranks


def _rates(name: str) -> list[float]:
    """The learning rates typed for a method; with several, the one best on the validation split is reported."""
    known = METHODS[name]
    typed = st.text_input(
        f"{known.label}: learning rates",
        placeholder=f"{known.learning_rate:g}",
        **bound(f"rates-{name}"),
        help="Several, separated by spaces, make a search.",
    )
    try:
        return [float(part) for part in typed.replace(",", " ").split()]
    except ValueError:
        st.error(f"The learning rates of {known.label} are not numbers: {markdown(typed)}", icon=":material/error:")
        return []


def _command(sweep: SweepSettings, checkpoint: Checkpoint) -> str:
    """`loraxs compare` with the plans, ranks and rates chosen; a plan that is not the one in use is made by a command before it."""
    model, before, words = shlex.quote(sweep.model), [], []
    for plan in _plans(sweep).values():
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
    words += [
        f"--learning-rate {name}={','.join(f'{rate:g}' for rate in rates)}" for name, rates in sweep.learning_rates.items()
    ]
    usual = SweepSettings(sweep.model)
    further = [
        f"rank {rank} of {METHODS[name].label}"
        for name, rank in sweep.ranks.items()
        if name != "lora-xs" and rank != METHODS[name].default_rank
    ]
    further += [
        f"{getattr(sweep, name)} {name.replace('_', ' ')}"
        for name in ("evaluations", "test_examples", "validation_examples")
        if getattr(sweep, name) not in (None, getattr(usual, name))
    ]
    if further:
        before.append(f"# The command has no option for {', '.join(further)}; Python takes them.")
    line = (
        f"loraxs compare {model} --task {shlex.quote(sweep.task)} --methods {','.join(sweep.methods)} --seeds {len(sweep.seeds)} "
        f"--steps {sweep.steps} --batch {sweep.batch} --sequence {sweep.sequence}"
    )
    return "\n".join([*before, " ".join([line, *words, "--out DIR"])])


def _python(sweep: SweepSettings, checkpoint: Checkpoint) -> str:
    document = {
        key: value
        for key, value in sweep.to_dict().items()
        if key not in ("plans", "model") and value != getattr(SweepSettings(sweep.model), key)
    }
    lines = "".join(f"    {key}={value!r},\n" for key, value in document.items())
    imports, plans = "", ""
    for label, plan in _plans(sweep).items():
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


def _plans(sweep: SweepSettings) -> dict[str, RankPlan]:
    return {label: RankPlan.from_dict(plan, f"The plan {label!r}") for label, plan in sweep.plans.items()}


def _in_use(plan: RankPlan) -> bool:
    file = state.plan_file()
    return file is not None and file.stem == state.identity(plan)
