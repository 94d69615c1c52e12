"""Plan: a rank for every layer under a budget, editable, beside the uniform baseline."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from analyzers.plans import Budget, PlanSettings, RankPlan, export
from analyzers.ranks import STRATEGIES, make_plan, uniform_baseline
from analyzers.storage import adapter_size
from app import answers, charts, components, state
from app.forms import bound, limited
from app.options.plan import DEFAULTS
from app.reproduce import plans
from app.text import markdown
from app.units import bytes_text, percent_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError, WorkbenchError

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from analyzers.spectra import Spectra

IN_USE = "in-use"
BUDGETS = {"like_rank": "Like rank", "parameters": "Numbers", "adapter_bytes": "Bytes"}
TARGETS = {"paper": "as in the LoRA-XS paper", "all-linear": "every attention and MLP layer"}
EXPORTS = {
    "python": ("Python", "plan.py", "python"),
    "lora-xs": ("LoRA-XS config", "adapter_config.json", "json"),
    "lora": ("PEFT LoRA rank_pattern", "adapter_config.json", "json"),
    "json": ("Plan (JSON)", "plan.json", "json"),
    "csv": ("Plan (CSV)", "plan.csv", None),
}


def show() -> None:
    """The page."""
    answer = components.heading("Plan", "How many directions each layer gets to train, and what that buys, under one budget.")
    checkpoint = state.checkpoint()
    controls, results = components.panes([1, 2.6], "plan")
    with controls:
        settings = _settings(checkpoint)
        _kept(checkpoint)
    with results, components.errors():
        made = _plan(checkpoint, settings)
        _results(checkpoint, made, settings, answer)


def _settings(checkpoint: Checkpoint) -> PlanSettings | None:
    """What is asked for; None: the plan in use."""
    in_use = state.plan()
    names = [*([IN_USE] if in_use else []), *STRATEGIES]
    labels = {IN_USE: "The plan in use", **{name: entry.label for name, entry in STRATEGIES.items()}}
    if st.session_state.get("strategy") not in names:
        st.session_state.pop("strategy", None)  # of another model, or of a plan that is gone
    strategy = st.selectbox("Strategy", names, **bound("strategy", labels.get))
    if strategy == IN_USE:
        st.caption(
            f"Strategy: {markdown(in_use.strategy)}. Budget: {markdown(in_use.requested)}. Choose a strategy above to make another plan."
        )
        return None
    st.caption(STRATEGIES[strategy].summary)
    kind = st.segmented_control(
        "Budget",
        list(BUDGETS),
        default="like_rank",
        required=True,
        **bound("budget", BUDGETS.get),
    )
    if kind == "like_rank":
        value = st.number_input("As many numbers as uniform rank", 1, 4096, DEFAULTS.budget.value, **bound("like-rank"))
    elif kind == "parameters":
        value = st.number_input("Trained numbers at most", 1, 10**10, 10_000, step=1000, **bound("parameters"))
    else:
        value = st.number_input("Adapter file at most (bytes)", 1, 10**12, 65_536, step=1024, **bound("adapter-bytes"))
    targets = st.selectbox(
        "Target modules",
        list(TARGETS),
        accept_new_options=True,
        **bound("targets", lambda name: f"{name}: {TARGETS[name]}" if name in TARGETS else name),
        help="Or type module suffixes or roles, separated by commas: q_proj, v_proj or mlp.down",
    )
    low, high = st.columns(2)
    largest = max(weight.full_rank for weight in checkpoint.linear)
    min_rank = low.number_input("Smallest rank", 1, largest, DEFAULTS.min_rank, **limited("min-rank", 1, largest))
    max_rank = high.number_input("Largest rank", 1, largest, None, placeholder="no limit", **limited("max-rank", 1, largest))
    scaling = st.number_input(
        "Scaling α/r, the same in every layer", 0.0, 64.0, DEFAULTS.alpha_over_r, step=0.5, **bound("scaling"),
        help="Held constant, so that the learning rate means the same in layers of different rank.",
    )  # fmt: skip
    return PlanSettings(
        strategy=strategy,
        budget=getattr(Budget, kind)(int(value)),
        targets=targets or DEFAULTS.targets,
        min_rank=int(min_rank),
        max_rank=None if max_rank is None else int(max_rank),
        alpha_over_r=float(scaling),
    )


def _kept(checkpoint: Checkpoint) -> None:
    """The plans used before on this model, and one from a file, to take up again."""
    kept = state.kept_plans()
    with st.expander(f"Plans kept: {len(kept)}" if kept else "Open a plan", icon=":material/history:"):
        if said := st.session_state.pop("plan-said", None):
            st.error(markdown(said), icon=":material/error:")
        chosen = st.selectbox(
            "Used before on this model, the newest first", list(kept), index=None, format_func=lambda name: _line(name, kept[name]),
            placeholder="choose one" if kept else "none yet: “Use this plan” keeps one", key="kept-plan",
        )  # fmt: skip
        st.button("Open it", key="open-plan", disabled=chosen is None, on_click=_open, args=(kept.get(chosen),))
        st.file_uploader("Or a plan.json", type="json", key="plan-upload", on_change=_upload, args=(checkpoint,))


def _line(name: str, plan: RankPlan) -> str:
    low, high = min(plan.ranks.values()), max(plan.ranks.values())
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return f"{plan.strategy}  ·  {ranks} in {len(plan.ranks)} layers  ·  {plan.trainable:,} numbers  ·  {name}"


def _open(plan: RankPlan) -> None:
    state.choose_plan(plan)
    st.session_state["strategy"] = IN_USE
    st.session_state["kept-plan"] = None


def _upload(checkpoint: Checkpoint) -> None:
    file = st.session_state["plan-upload"]
    if file is None:
        return
    try:
        plan = RankPlan.from_json(file.getvalue(), file.name)
        plan.check(checkpoint)
        _open(dataclasses.replace(plan, model=checkpoint.name))
    except WorkbenchError as error:
        st.session_state["plan-said"] = str(error)


def _plan(checkpoint: Checkpoint, settings: PlanSettings | None) -> RankPlan:
    if settings is None:
        plan = state.plan()
        plan.check(checkpoint)
        return plan
    spectra = None
    if STRATEGIES[settings.strategy].needs_spectra:
        spectra = state.spectra(checkpoint)
        if spectra is None:
            if checkpoint.has_weights:
                st.page_link(components.page_of("spectra"), label="Scan the model first", icon=":material/arrow_forward:")
            raise PlanError(
                f"The strategy “{STRATEGIES[settings.strategy].label}” reads singular values, and "
                + (f"{checkpoint.name} has not been scanned." if checkpoint.has_weights else f"{checkpoint.name} is an architecture without weights; choose another strategy.")
            )  # fmt: skip
    return _made(checkpoint.fingerprint, checkpoint.name, settings, checkpoint, spectra)


@st.cache_data(max_entries=200, show_spinner="Sharing the budget among the layers…")
def _made(fingerprint: str, name: str, settings: PlanSettings, _checkpoint: Checkpoint, _spectra: Spectra | None) -> RankPlan:
    return make_plan(_checkpoint, settings=settings, spectra=_spectra)


@st.cache_data(max_entries=200, show_spinner=False)
def _file_bytes(fingerprint: str, document: dict, _checkpoint: Checkpoint, _plan: RankPlan) -> int:
    return adapter_size(_checkpoint, "lora-xs", plan=_plan).file_bytes


def _results(checkpoint: Checkpoint, made: RankPlan, settings: PlanSettings | None, answer: DeltaGenerator) -> None:
    spectra = state.spectra(checkpoint)
    totals, figure = st.container(), st.container()
    plan = _edited(checkpoint, made, spectra)
    frame = plan.frame(checkpoint, spectra)
    with totals:
        size = _totals(plan, frame)
    limits = {} if settings is None else {"min_rank": settings.min_rank, "max_rank": settings.max_rank}
    uniform = (
        None
        if plan.strategy == "uniform"
        else _uniform(checkpoint.fingerprint, plan.to_dict(), tuple(limits.items()), checkpoint, plan)
    )
    uniform_frame = None if uniform is None else uniform.frame(checkpoint, spectra)
    components.answer(answer, answers.plan(plan, frame, uniform, uniform_frame))
    with figure:
        components.chart(
            charts.rank_bars(frame, uniform=uniform.most_frequent_rank if uniform else None, dark=state.dark()), "ranks"
        )
        if uniform is not None:
            _against_uniform(plan, uniform, frame, uniform_frame)
    st.markdown(f"**What this rests on.** {markdown(plan.evidence)}")
    edits = {name: rank for name, rank in plan.ranks.items() if rank != made.ranks[name]}
    _exports(checkpoint, plan, settings, edits)
    # Last, as the first count in a session waits for PEFT to be imported; the rest of the page is there by then.
    with size, st.spinner("Adapter file…"):
        whole = _file_bytes(checkpoint.fingerprint, plan.to_dict(), checkpoint, plan)
        st.metric("Adapter file", bytes_text(whole), border=True, help=f"{whole:,} bytes of float32, header included")


def _edited(checkpoint: Checkpoint, made: RankPlan, spectra: Spectra | None) -> RankPlan:
    """The rank table; the plan with the ranks typed into it."""
    st.subheader("Ranks, layer by layer", anchor=False)
    st.caption("Type another rank to see what it changes; the totals above follow.")
    frame = made.frame(checkpoint, spectra).assign(role=lambda table: table["role"].map(charts.role_label))
    key = f"edit-{state.identity(made)}"
    edited = st.data_editor(
        frame,
        key=key,
        hide_index=True,
        height=360,
        disabled=[column for column in frame if column != "rank"],
        column_order=["name", "role", "shape", "rank", "trainable", "energy_at_rank"],
        column_config={
            "rank": st.column_config.NumberColumn(
                "rank", min_value=1, max_value=int(frame[["out", "in"]].min(axis=1).max()), step=1, required=True
            ),
            "trainable": st.column_config.NumberColumn("planned r²", format="localized"),
            "energy_at_rank": st.column_config.ProgressColumn(
                "energy at planned rank", format="percent", min_value=0, max_value=1
            ),
        },
    )
    with components.errors():
        return made.with_ranks({row["name"]: int(row["rank"]) for row in edited.to_dict("records")})
    return made


def _totals(plan: RankPlan, frame: pd.DataFrame) -> DeltaGenerator:
    """Figures of the whole plan; returns the place for the size of its file."""
    low, high = frame["rank"].min(), frame["rank"].max()
    with components.cards(5 if "energy_at_rank" in frame else 4):
        st.metric("Trained numbers, Σ r²", f"{plan.trainable:,}", border=True)
        st.metric(
            "Of the budget",
            f"{100 * plan.trainable / plan.budget:.1f} %",
            border=True,
            help=f"Budget: {plan.budget:,} trained numbers ({markdown(plan.requested)})",
        )
        size = st.container()
        st.metric("Ranks", f"{low} to {high}" if low < high else f"{low}", border=True, help=f"in {len(frame):,} layers")
        if "energy_at_rank" in frame:
            st.metric(
                "Mean energy at rank",
                percent_text(frame["energy_at_rank"].mean()),
                border=True,
                help="Share of ‖W0‖²_F inside the rank, mean over layers",
            )
    if not plan.within_budget:
        st.warning(
            f"These ranks take {plan.trainable - plan.budget:,} numbers more than the budget of {plan.budget:,}.",
            icon=":material/warning:",
        )
    for note in plan.notes:
        st.info(markdown(note), icon=":material/info:")
    in_use = state.plan()
    if in_use is not None and state.identity(in_use) == state.identity(plan):
        st.button("In use on every page", icon=":material/check:", disabled=True, key="used")
    elif st.button("Use this plan", type="primary", icon=":material/check:", key="use"):
        state.choose_plan(plan)
        st.rerun()
    return size


@st.cache_data(max_entries=200, show_spinner="Sharing the budget among the layers…")
def _uniform(fingerprint: str, document: dict, limits: tuple, _checkpoint: Checkpoint, _plan: RankPlan) -> RankPlan:
    return uniform_baseline(_checkpoint, _plan, **dict(limits))


def _against_uniform(plan: RankPlan, uniform: RankPlan, frame: pd.DataFrame, uniform_frame: pd.DataFrame) -> None:
    with st.expander("Beside uniform ranks at the same budget", icon=":material/compare_arrows:"):
        both = pd.concat([frame.assign(plan=plan.strategy), uniform_frame.assign(plan="uniform")], ignore_index=True)
        components.chart(charts.rank_comparison(both, dark=state.dark()), "against-uniform")
        changes = plan.diff(uniform)
        st.caption(f"{len(changes)} of {len(plan.ranks)} layers have another rank under the uniform plan.")
        components.table(changes, "against-uniform.csv", key="diff", height=240)


def _exports(checkpoint: Checkpoint, plan: RankPlan, settings: PlanSettings | None, edits: dict[str, int]) -> None:
    """The plan as files, and as what makes it. edits: the ranks typed into the table."""
    st.subheader("Take it with you", anchor=False)
    kind = st.segmented_control(
        "Format",
        list(EXPORTS),
        default="python",
        required=True,
        **bound("export", lambda name: EXPORTS[name][0]),
    )
    _, file_name, language = EXPORTS[kind]
    with components.errors():
        text = export.text(plan, kind)
        st.download_button(
            f"Download {file_name}", text, file_name, key="download-export", icon=":material/download:", on_click="ignore"
        )
        with st.container(height=320):
            st.code(text, language=language)
    if settings is None:
        command, python = (make(checkpoint.name, state.plan_file()) for make in (plans.command_of_file, plans.python_of_file))
    else:
        command, python = plans.command(checkpoint.name, settings), plans.python(checkpoint.name, settings)
    if edits:
        model = shlex.quote(checkpoint.name)
        command = (
            "# The command has no option for ranks typed by hand; download the plan as JSON above, then\n"
            f"loraxs size {model} --method lora-xs --plan plan.json"
        )
        python += f"\nplan = plan.with_ranks({edits!r})"
    components.reproduce(command, f'{python}\nprint(plan.frame(model))\nplan.save("plan.json")')
