"""What a comparison is made of, as inputs of the Compare page: task, methods, ranks and plans, how long, how evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from analyzers.compare import SweepSettings, open_task
from analyzers.compare.settings import TRACKERS
from analyzers.compare.tasks import CAUSAL, own_source
from analyzers.compare.variants import PLAN, PLANNED, ablation_plans
from analyzers.methods import MAIN_METHODS, METHODS
from analyzers.ranks import STRATEGIES, uniform_baseline
from app import components, state
from app.forms import bound
from app.panels import own_data, task_input
from app.text import markdown
from app.units import count_text
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from analyzers.spectra import Spectra
    from loraxs_core.checkpoint import Checkpoint

CONTROL = ("head-only", *MAIN_METHODS)
# The key of each number, and what it sets.
KEYS = {
    "steps": "steps",
    "compare-batch": "batch",
    "compare-sequence": "sequence",
    "evaluations": "evaluations",
    "test-examples": "test_examples",
    "validation-examples": "validation_examples",
}
# What a comparison may have that has no input here.
BEYOND = {
    "configs": "configurations of its own",
    "targets": "targets of its own",
    "head_learning_rate": "a learning rate of its head",
    "device": "a device chosen for it",
    "threads": "a number of threads",
    "executor": "an executor",
    "processes": "several processes a trial",
}
ABLATED = {
    "basis": "singular vectors: top, random, middle, bottom",
    "sigma": "Σ: input, output, split, none",
    "rank": "rank: 4 to 32",
    PLAN: "plan: each against uniform",
}


def show() -> dict | None:
    """Draws the inputs; keyword arguments of `SweepSettings` without the model, or None where the task is none yet (which is said)."""
    task, usable = task_input.show()
    methods = st.multiselect(
        "Methods",
        list(METHODS),
        default=list(CONTROL),
        **bound("methods", lambda name: METHODS[name].label),
    )
    plans, ranks = _ranks(methods)
    ablate, more = _ablations(methods, ranks)
    seeds, steps = st.columns(2)
    batch, sequence = st.columns(2)
    settings = {
        **task,
        "methods": methods,
        "plans": plans | more,
        "ablate": ablate,
        "ranks": ranks,
        "seeds": int(
            seeds.number_input("Seeds", 1, 50, 1, **bound("seeds"), help="With several, the results carry 95 % intervals.")
        ),
        "steps": int(steps.number_input("Steps a trial", 1, 1_000_000, 100, step=50, **bound("steps"))),
        "batch": int(batch.number_input("Batch", 1, 4096, 32, **bound("compare-batch"))),
        "sequence": int(sequence.number_input("Tokens a text", 4, 8192, 128, step=32, **bound("compare-sequence"))),
    }
    with st.expander("Learning rates and evaluation", icon=":material/tune:"):
        settings["tune_lr"] = st.toggle(
            "Look for each method's own rate first",
            **bound("tune-lr"),
            help="On training examples that are set aside; at most twice the time.",
        )
        causal = usable and open_task(task["task"], task.get("columns")).kind == CAUSAL
        settings["learning_rates"] = {name: rates for name in methods if (rates := _rates(name, causal))}
        settings["evaluations"] = int(st.number_input("Evaluations a trial", 1, 100, 4, **bound("evaluations")))
        settings["test_examples"] = st.number_input(
            "Test examples at most", 1, 1_000_000, None, placeholder="all", **bound("test-examples")
        )
        settings["validation_examples"] = st.number_input(
            "Validation examples at most", 1, 1_000_000, 256, **bound("validation-examples")
        )
        settings["report_to"] = st.multiselect(
            "Report to",
            TRACKERS,
            **bound("report-to"),
            placeholder="nobody",
            help="Told of the training as well; the package has to be installed.",
        )
    return settings if usable else None


def _ablations(methods: list[str], ranks: dict) -> tuple[list[str], dict]:
    """(what is taken apart of LoRA-XS, the plans that this needs)."""
    if PLANNED not in methods:
        return [], {}
    chosen = st.multiselect(
        "Take LoRA-XS apart", list(ABLATED), **bound("ablate", lambda name: ABLATED[name]), placeholder="no ablation",
        help="Each variant is raced against LoRA-XS itself, at its learning rate.",
    )  # fmt: skip
    if PLAN not in chosen:
        return chosen, {}
    checkpoint = state.checkpoint()
    spectra = state.spectra(checkpoint)
    if spectra is None:
        components.needs("Plans that follow the spectra need them: scan the model first.", "spectra", "Scan the model")
        return [name for name in chosen if name != PLAN], {}
    return chosen, _every_plan(checkpoint.fingerprint, ranks.get(PLANNED) or METHODS[PLANNED].default_rank, checkpoint, spectra)


@st.cache_data(max_entries=20, show_spinner="Sharing the budget among the layers…")
def _every_plan(fingerprint: str, rank: int, _checkpoint: Checkpoint, _spectra: Spectra) -> dict:
    return ablation_plans(_checkpoint, rank, spectra=_spectra)


def race_plan() -> None:
    """For a button: the plan in use against uniform ranks at the same budget is what the form says, on as many seeds as a verdict
    takes, with the head alone beside both: where no adapter is ahead of that, ranks cannot matter."""
    methods = [CONTROL[0], PLANNED]
    st.session_state.update({"methods": methods, "compare-by-plan": True, "compare-uniform": True, "seeds": 5, "ablate": []})


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


def _rates(name: str, causal: bool) -> list[float]:
    """The learning rates typed for a method; with several, the one best on the validation split is reported. causal: whether a decoder
    writes, which has rates of its own."""
    known = METHODS[name]
    usual = known.rate(causal)
    typed = st.text_input(
        f"{known.label}: learning rates",
        placeholder=f"{usual.value:g}",
        **bound(f"rates-{name}"),
        help=f"Several, separated by spaces, make a search. {usual.value:g} comes from: {markdown(usual.source)}.",
    )
    try:
        return [float(part) for part in typed.replace(",", " ").split()]
    except ValueError:
        st.error(f"The learning rates of {known.label} are not numbers: {markdown(typed)}", icon=":material/error:")
        return []


def use(settings: SweepSettings) -> None:
    """Puts the settings of a comparison into the inputs, with its model and its plan. For a button's callback.

    Raises SettingsError for what the form has no input for: started again without it, it would be another comparison.
    """
    usual = SweepSettings(settings.model)
    if beyond := [words for name, words in BEYOND.items() if getattr(settings, name) != getattr(usual, name)]:
        raise SettingsError(
            f"That comparison has {' and '.join(beyond)}, which this form has no input for; run it again with loraxs compare or from Python."
        )
    state.choose_model(settings.model)
    values: dict[str, object] = {key: getattr(settings, name) for key, name in KEYS.items()}
    values |= own_data.values(own_source(settings.task), settings.columns)
    values |= {
        "task": settings.task,
        "task-data": settings.data or "",
        "methods": list(settings.methods),
        "seeds": settings.seed_count,
        "ablate": list(settings.ablate),
        "tune-lr": settings.tune_lr,
        "report-to": list(settings.report_to),
    }
    for name in settings.methods:
        values[f"rates-{name}"] = " ".join(f"{rate:g}" for rate in settings.rates(name))
        if METHODS[name].ranked:
            own = settings.rank if name == "lora-xs" else None
            values[f"compare-rank-{name}"] = settings.ranks.get(name) or own or METHODS[name].default_rank
    plans = [plan for label, plan in settings.rank_plans().items() if PLAN not in settings.ablate or label not in STRATEGIES]
    if plans:
        state.choose_plan(next((plan for plan in plans if plan.strategy != "uniform"), plans[0]))
        values["compare-uniform"] = len(plans) > 1
    st.session_state.update(values | {"compare-by-plan": bool(plans)})
