"""Cost: what an adapter weighs, what a fleet of them costs to keep, and whether training fits a GPU."""

from __future__ import annotations

import shlex

import pandas as pd
import streamlit as st

from analyzers.methods import MAIN_METHODS, METHODS
from analyzers.storage import TASKS, BreakEven, adapter_size, break_even, fleet_cost, load_seconds, resident_adapters
from app import charts, components, state
from app.units import bytes_text, count_text, money_text
from app.views import adapter_words, memory_panel
from loraxs_core.checkpoint import Checkpoint

DTYPES = {"float32": "float32 (4 bytes a number)", "bfloat16": "bfloat16 (2 bytes)", "float16": "float16 (2 bytes)"}
GIB = 2**30
FLEET_SIZES = [10**power for power in range(10)]


def show() -> None:
    """The page."""
    components.heading(
        "Cost", "What one adapter weighs, what a fleet of them costs to keep, and whether training fits your card."
    )
    checkpoint = state.checkpoint()
    with components.errors():
        ranks = _ranks(checkpoint)
        size, memory = st.tabs(["On disk: one adapter and a fleet", "GPU memory of training"])
        with size, components.errors():
            _storage(checkpoint, ranks)
        with memory, components.errors():
            memory_panel.show(checkpoint, ranks, adapter_words.targets(checkpoint, state.plan()))


def _ranks(checkpoint: Checkpoint) -> dict[str, dict]:
    """Method -> the rank or the plan it is counted with."""
    plan = state.plan()
    if plan is not None:
        plan.check(checkpoint)
    columns = st.columns([1, 1, 1, 1.6], vertical_alignment="bottom")
    ranks = {}
    for column, method in zip(columns, MAIN_METHODS, strict=False):
        known = METHODS[method]
        if method == "lora-xs" and plan is not None:
            follow = columns[3].toggle(
                f"LoRA-XS by the plan in use ({plan.strategy}, {count_text(plan.trainable)} numbers)",
                value=True,
                key="by-plan",
                persist_state="session",
            )
            if follow:
                column.text_input("Rank of LoRA-XS", "by the plan", disabled=True, key="rank-by-plan")
                ranks[method] = {"plan": plan}
                continue
        value = column.number_input(
            f"Rank of {known.label}", 1, 8192, known.default_rank, key=f"rank-{method}", persist_state="session"
        )
        ranks[method] = {"rank": int(value)}
    if plan is None:
        columns[3].page_link(
            components.page_of("plan"),
            label="No plan in use: LoRA-XS is counted with one rank. Make a plan",
            icon=":material/tune:",
        )
    return ranks


@st.cache_data(max_entries=500, show_spinner=False)
def _size(fingerprint: str, method: str, asked: tuple, _checkpoint: Checkpoint, _plan: object) -> object:
    return adapter_size(_checkpoint, method, **({"plan": _plan} if _plan is not None else {}), **dict(asked))


def _sizes(checkpoint: Checkpoint, ranks: dict[str, dict], dtype: str, task: str | None, options: dict[str, dict]) -> list:
    found = []
    for method, asked in ranks.items():
        plan = asked.get("plan")
        settings = {"dtype": dtype, "task": task, "options": options.get(method)} | (
            {"plan_id": state.identity(plan)} if plan else {**asked, **adapter_words.targets(checkpoint, state.plan())}
        )
        found.append(_size_of(checkpoint, method, settings, plan))
    return found


def _size_of(checkpoint: Checkpoint, method: str, settings: dict, plan: object) -> object:
    named = tuple(sorted((key, value) for key, value in settings.items() if key != "plan_id"))
    return _size(f"{checkpoint.fingerprint}{settings.get('plan_id', '')}", method, named, checkpoint, plan)


def _storage(checkpoint: Checkpoint, ranks: dict[str, dict]) -> None:
    controls = st.columns(5)
    dtype = controls[0].selectbox("Saved as", list(DTYPES), format_func=DTYPES.get, key="saved-dtype", persist_state="session")
    task = controls[1].selectbox(
        "Model class",
        [None, *TASKS],
        format_func=lambda name: name or "the checkpoint's own",
        key="saved-task",
        persist_state="session",
        help="Decides the tensors' names, and whether a trained head is saved too.",
    )
    adapters = controls[2].number_input(
        "Adapters kept",
        1,
        10**10,
        1_000_000,
        step=1000,
        key="adapters",
        persist_state="session",
        help="One a user, one a task, one a version.",
    )
    replicas = controls[3].number_input("Copies of each", 1, 100, 1, key="replicas", persist_state="session")
    price = controls[4].number_input(
        "Price ($ per GB and month)", 0.0, 100.0, 0.023, step=0.001, format="%.3f", key="price", persist_state="session"
    )
    link, memory, seed = st.columns([1, 1, 3], vertical_alignment="bottom")
    speed = link.number_input(
        "Link (Gbit/s)", 0.001, 10_000.0, 1.0, key="link", persist_state="session", help="Adapters are loaded over it."
    )
    room = memory.number_input(
        "Memory for adapters (GiB)",
        0.1,
        100_000.0,
        80.0,
        key="memory-gib",
        persist_state="session",
        help="RAM or GPU memory in which adapters stay; LoRA-XS's A and B and VeRA's projections are counted once.",
    )
    seeded = seed.toggle(
        "VeRA makes its projections from a seed instead of saving them", key="vera-seeded", persist_state="session",
        help="PEFT saves them by default (save_projection), so that an adapter does not depend on the random generator.",
    )  # fmt: skip
    everything = {"full": {}} | ranks
    options = {"vera": {"save_projection": not seeded}}
    every = _sizes(checkpoint, everything, dtype, task, options)
    prices = {"adapters": int(adapters), "replicas": int(replicas), "price_per_gb_month": price}
    all_fleets = [fleet_cost(size, **prices) for size in every]
    sizes, fleets = every[1:], all_fleets[1:]  # a card each for the adapters; full fine-tuning in charts and table only
    for column, size, fleet in zip(st.columns(len(sizes)), sizes, fleets, strict=True):
        with column.container(border=True):
            st.markdown(f"**{size.label}**, rank {size.rank_text}")
            one, all_of_them = st.columns(2)
            one.metric(
                "One adapter file",
                bytes_text(size.file_bytes),
                help=f"{size.file_bytes:,} bytes, header of {size.header_bytes:,} included",
            )
            all_of_them.metric(f"{count_text(adapters)} of them", bytes_text(fleet.fleet_bytes))
            st.caption(f"{size.trainable:,} trained numbers; {money_text(fleet.cost_per_month)} a month for the fleet")
    _smaller(sizes)
    _break_even(checkpoint, ranks, {"dtype": dtype, "task": task}, options)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("One adapter", anchor=False)
        rows = [
            {"method": size.method, "label": size.label, "bytes": size.file_bytes, "text": bytes_text(size.file_bytes)}
            for size in every
        ]
        components.chart(charts.storage_bars(pd.DataFrame(rows), label="one file (B)", dark=state.dark()), "sizes")
    with right:
        st.subheader("A fleet", anchor=False)
        curve = [
            {
                "method": size.method,
                "label": size.label,
                "adapters": count,
                "bytes": fleet_cost(size, **prices | {"adapters": count}).fleet_bytes,
            }
            for size in every
            for count in FLEET_SIZES
        ]
        components.chart(
            charts.fleet_curves(
                pd.DataFrame(curve), label="stored, copies included (B)", marker=float(adapters), dark=state.dark()
            ),
            "fleet",
        )
    table = pd.DataFrame(
        [
            {
                "method": size.label,
                "rank": size.rank_text,
                "trained numbers": size.trainable,
                "head numbers": size.head_parameters,
                "file (B)": size.file_bytes,
                "header (B)": size.header_bytes,
                "fleet (B)": fleet.fleet_bytes,
                "fleet ($ a month)": fleet.cost_per_month,
                "load one (s)": load_seconds(size, gigabits_per_second=speed),
                f"stay in {room:g} GiB": resident_adapters(size, room * GIB),
            }
            for size, fleet in zip(every, all_fleets, strict=True)
        ]
    )
    whole = st.column_config.NumberColumn(format="localized")
    components.table(
        table,
        "sizes.csv",
        key="size-table",
        columns=dict.fromkeys((*table.columns[2:7], table.columns[-1]), whole)
        | {
            "fleet ($ a month)": st.column_config.NumberColumn(format="dollar"),
            "load one (s)": st.column_config.NumberColumn(format="%.3g"),
        },
    )
    serving = {"speed": speed, "room": room, "seeded": seeded, "dtype": dtype, "task": task}
    targets = adapter_words.targets(checkpoint, state.plan())
    components.reproduce(_command(everything, targets, serving, prices), _python(everything, targets, serving, prices, options))


def _break_even(checkpoint: Checkpoint, ranks: dict[str, dict], saved: dict, options: dict[str, dict]) -> None:
    """At which rank LoRA-XS costs what the others do."""
    settings = saved | adapter_words.targets(checkpoint, state.plan())
    lines = []
    for method in ("lora", "vera"):
        asked = {**settings, "rank": ranks[method]["rank"], "options": options.get(method)}
        lines.append(f"- {_meets(checkpoint.fingerprint, method, tuple(sorted(asked.items())), checkpoint).sentence}")
    st.markdown("\n".join(lines))


@st.cache_data(max_entries=200, show_spinner=False)
def _meets(fingerprint: str, method: str, asked: tuple, _checkpoint: Checkpoint) -> BreakEven:
    return break_even(_checkpoint, method, **dict(asked))


def _command(ranks: dict[str, dict], targets: dict, serving: dict, prices: dict) -> str:
    """`loraxs fleet` for what has a rank; `loraxs size` for a plan, and where a model class was chosen."""
    model, task = shlex.quote(state.model_name()), serving["task"]
    money = f"--dtype {serving['dtype']} --adapters {prices['adapters']} --replicas {prices['replicas']} --price {prices['price_per_gb_month']:g}"
    ranked = {} if task else {method: asked for method, asked in ranks.items() if "plan" not in asked}
    lines = []
    if serving["seeded"]:
        lines.append("# The commands count VeRA with its projections saved; Python as chosen here.")
    if ranked:
        given = "".join(f" --rank {method}={asked['rank']}" for method, asked in ranked.items() if asked)
        lines.append(
            f"loraxs fleet {model} --methods {','.join(ranked)}{given}{adapter_words.target_flags(targets)} {money} "
            f"--link {serving['speed']:g} --memory {serving['room']:g}"
        )
    for method, asked in ranks.items():
        if method not in ranked:
            words = adapter_words.flags(asked, targets if asked else {})
            lines.append(f"loraxs size {model} --method {method}{words} {money}{f' --task {task}' if task else ''}")
    return "\n".join(lines)


def _python(ranks: dict[str, dict], targets: dict, serving: dict, prices: dict, options: dict[str, dict]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in prices.items())
    return (
        "from analyzers.storage import adapter_size, break_even, fleet_cost, load_seconds, resident_adapters\n"
        + adapter_words.imports(ranks)
        + f"\nmodel = open_model({state.model_name()!r})\noptions = {options!r}\n"
        + f"methods = {adapter_words.python(ranks, targets)}\n"
        + "for method, asked in methods.items():\n"
        + f"    size = adapter_size(model, method, dtype={serving['dtype']!r}, task={serving['task']!r}, options=options.get(method), **asked)\n"
        + f"    fleet = fleet_cost(size, {arguments})\n"
        + "    print(method, size.file_bytes, fleet.fleet_bytes, fleet.cost_per_month)\n"
        + f"    print(load_seconds(size, gigabits_per_second={serving['speed']!r}), resident_adapters(size, {serving['room']!r} * 2**30))\n"
        + "for method in ('lora', 'vera'):\n"
        + f"    print(break_even(model, method, dtype={serving['dtype']!r}, task={serving['task']!r}, options=options.get(method), **methods[method]).sentence)"
    )


def _smaller(sizes: list) -> None:
    """What decides, in a sentence."""
    own = next(size for size in sizes if size.method == "lora-xs")
    against = [
        f"{other.label}'s is {other.file_bytes / own.file_bytes:,.1f} times as large"
        if other.file_bytes >= own.file_bytes
        else f"{other.label}'s is {own.file_bytes / other.file_bytes:,.1f} times smaller"
        for other in sizes
        if other is not own
    ]
    share = own.header_bytes / own.file_bytes
    header = (
        f" {100 * share:.0f} % of it is the header that names the tensors; a larger rank does not change that part."
        if share > 0.2
        else ""
    )
    st.markdown(f"The file of LoRA-XS is {bytes_text(own.file_bytes)}; {', '.join(against)}.{header}")
