"""What a fleet is made of, as inputs of the Cost page: methods and precision, how many are kept, what serving costs."""

from __future__ import annotations

import streamlit as st

from analyzers.methods import MAIN_METHODS, METHODS
from analyzers.storage import TASKS, Scenario
from analyzers.storage.fleet import PRICE_PER_1000_LOADS, PRICE_PER_GB_MONTH
from analyzers.units import GIB
from app import components, state
from app.forms import bound, folded, value
from app.reproduce import adapters
from app.units import gib_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError

DTYPES = {"float32": "float32 (4 bytes a number)", "bfloat16": "bfloat16 (2 bytes)", "float16": "float16 (2 bytes)"}
DEFAULT_METHODS = ["full", *MAIN_METHODS]
OWN_CLASS = "the checkpoint's own"

# The key of each input, and what it sets in a scenario.
KEYS = {
    "saved-dtype": "dtype",
    "adapters": "adapters",
    "replicas": "replicas",
    "versions": "versions",
    "loads": "loads_per_month",
    "price": "price_per_gb_month",
    "request-price": "price_per_1000_loads",
    "egress": "egress_price_per_gb",
    "link": "gigabits_per_second",
    "memory-gib": "memory_gib",
}

# What the inputs about prices and serving hold when nothing was typed.
SERVING = {
    "price": PRICE_PER_GB_MONTH,
    "request-price": PRICE_PER_1000_LOADS,
    "egress": 0.0,
    "link": 1.0,
    "memory-gib": 80.0,
    "base-gib": 0.0,
    "vera-seeded": False,
}

# The least and the most that an input takes.
LIMITS = {
    "adapters": (1, 10**12),
    "replicas": (1, 1000),
    "versions": (1, 10_000),
    "loads": (0.0, 1e15),
    "price": (0.0, 1000.0),
    "request-price": (0.0, 1000.0),
    "egress": (0.0, 1000.0),
    "link": (0.001, 100_000.0),
    "memory-gib": (0.1, 1e6),
    "base-gib": (0.0, 1e6),
    "rank": (1, 8192),
}


def show(checkpoint: Checkpoint, ranks: dict[str, dict]) -> Scenario:
    """Draws the inputs. ranks: method -> the rank or the plan it is counted with, for those with an input above the tabs."""
    methods, ranks = _methods(ranks)
    if not methods:
        raise SettingsError("Choose at least one method.")
    if place := folded("Prices and serving", ":material/payments:", SERVING):
        with place:
            _prices(checkpoint)
    plan = ranks.get("lora-xs", {}).get("plan")
    layers = adapters.targets(checkpoint, state.plan()).get("targets")
    return Scenario(
        model=state.model_name(),
        methods=tuple(methods),
        ranks={name: asked["rank"] for name, asked in ranks.items() if name in methods and "rank" in asked},
        plan=plan.to_dict() if plan else None,
        targets=",".join(layers) if layers else "paper",
        options={"vera": {"save_projection": False}} if value("vera-seeded", False) else None,
        task=None if st.session_state["saved-task"] == OWN_CLASS else st.session_state["saved-task"],
        base_bytes_in_memory=value("base-gib", SERVING["base-gib"]) * GIB,
        **{setting: value(key, SERVING.get(key)) for key, setting in KEYS.items()},
    )


def use(scenario: Scenario) -> None:
    """Puts a scenario's settings, but for its model and for layers without a plan, into the inputs. For a button's callback.

    Raises SettingsError when one of them is beyond what an input takes.
    """
    values = {key: getattr(scenario, setting) for key, setting in KEYS.items()}
    values |= {"storage-methods": list(scenario.methods), "base-gib": scenario.base_bytes_in_memory / GIB}
    values["vera-seeded"] = (scenario.options or {}).get("vera", {}).get("save_projection") is False
    values["saved-task"] = next((word for word, task in TASKS.items() if scenario.task in (word, task)), OWN_CLASS)
    for name in scenario.methods:
        if METHODS[name].ranked:
            values[f"rank-{name}"] = (scenario.ranks or {}).get(name, METHODS[name].default_rank)
    if scenario.dtype not in DTYPES:
        raise SettingsError(
            f"This page has no input for adapters saved as {scenario.dtype}; `loraxs fleet --scenario` counts them."
        )
    for key, wanted in values.items():
        limits = LIMITS.get("rank" if key.startswith("rank-") else key)
        if limits is not None:
            if not limits[0] <= wanted <= limits[1]:
                raise SettingsError(
                    f"The scenario's {key.replace('-', ' ')} of {wanted:,} is beyond this page's input; "
                    "`loraxs fleet --scenario` counts it."
                )
            values[key] = type(limits[0])(wanted)
    plan = scenario.rank_plan()
    if plan is not None and scenario.model == state.model_name():
        state.choose_plan(plan)
    st.session_state.update(values | {"by-plan": plan is not None})


def _methods(ranks: dict[str, dict]) -> tuple[list[str], dict[str, dict]]:
    """The methods compared, and the ranks of all of them."""
    chosen, dtype, task = st.columns([2.4, 1, 1])
    methods = chosen.multiselect(
        "Methods side by side",
        list(METHODS),
        DEFAULT_METHODS,
        **bound("storage-methods", lambda name: METHODS[name].label),
    )
    dtype.selectbox("Saved as", list(DTYPES), **bound("saved-dtype", DTYPES.get))
    task.selectbox(
        "Model class",
        [OWN_CLASS, *TASKS],
        **bound("saved-task"),
        help="Decides the tensors' names, and whether a trained head is saved too.",
    )
    further = [name for name in methods if METHODS[name].ranked and name not in MAIN_METHODS]
    for column, name in zip(st.columns(max(4, len(further))) if further else [], further, strict=False):
        rank = column.number_input(
            f"Rank of {METHODS[name].label}",
            *LIMITS["rank"],
            METHODS[name].default_rank,
            **bound(f"rank-{name}"),
        )
        ranks = {**ranks, name: {"rank": int(rank)}}
    with components.cards(4):  # one place for all four, where columns would be five for a browser to lay out
        st.number_input(
            "Adapters kept",
            *LIMITS["adapters"],
            1_000_000,
            step=1000,
            **bound("adapters"),
            help="One a user, one a task.",
        )
        st.number_input("Copies of each", *LIMITS["replicas"], 1, **bound("replicas"))
        st.number_input(
            "Versions kept of each",
            *LIMITS["versions"],
            1,
            **bound("versions"),
            help="The current one included.",
        )
        st.number_input(
            "Loads a month",
            *LIMITS["loads"],
            0.0,
            step=1000.0,
            format="%.0f",
            **bound("loads"),
            help="How often an adapter is read from the store, all of them together. Each is one request and moves one file.",
        )
    return methods, ranks


def _prices(checkpoint: Checkpoint) -> None:
    """The inputs inside the expander."""
    columns = st.columns(3)
    columns[0].number_input(
        "Storage ($ per GB and month)",
        *LIMITS["price"],
        SERVING["price"],
        step=0.001,
        format="%.4f",
        **bound("price"),
        help="S3 Standard in us-east-1, the first 50 TB. 1 GB is 10⁹ bytes.",
    )
    columns[1].number_input(
        "Requests ($ per 1,000 loads)",
        *LIMITS["request-price"],
        SERVING["request-price"],
        step=0.0001,
        format="%.4f",
        **bound("request-price"),
        help="S3 Standard in us-east-1.",
    )
    columns[2].number_input(
        "Egress ($ per GB)",
        *LIMITS["egress"],
        SERVING["egress"],
        step=0.01,
        format="%.4f",
        **bound("egress"),
        help="Nothing within the store's own region; 0.09 out of S3 to the internet, the first 10 TB a month.",
    )
    columns = st.columns(3)
    columns[0].number_input(
        "Link (Gbit/s)", *LIMITS["link"], SERVING["link"], **bound("link"), help="Adapters are loaded over it."
    )
    columns[1].number_input(
        "Memory for serving (GiB)",
        *LIMITS["memory-gib"],
        SERVING["memory-gib"],
        **bound("memory-gib"),
        help="RAM or GPU memory in which adapters stay; LoRA-XS's A and B and VeRA's projections are counted once.",
    )
    columns[2].number_input(
        "of it taken by the base model (GiB)",
        *LIMITS["base-gib"],
        SERVING["base-gib"],
        **bound("base-gib"),
        help=f"{gib_text(2 * checkpoint.parameters)} are this model's weights in 16 bit.",
    )
    st.toggle(
        "VeRA makes its projections from a seed instead of saving them",
        **bound("vera-seeded"),
        help="PEFT saves them by default (save_projection), so that an adapter does not depend on the random generator.",
    )
