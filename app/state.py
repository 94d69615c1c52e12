"""The one model and the one plan that the pages share, kept across pages, refreshes and restarts.

The URL names both (``?model=…&plan=…``), and what the Spectra page looks at in the model, so a refresh or a copied link shows the
same thing; the user's data folder holds the plans themselves and the last model, so that the page opens tomorrow where it was
closed today.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analyzers.plans import RankPlan
from app import forms
from app.remembered import remember, remembered
from loraxs_core.errors import WorkbenchError
from loraxs_core.paths import data_dir
from loraxs_core.safetensors_file import file_stamp
from sample_models import CATALOGUE, local_path, open_model, weights_are_here

if TYPE_CHECKING:
    from analyzers.plans import RankPlan
    from analyzers.spectra import Spectra
    from loraxs_core.checkpoint import Checkpoint

DEFAULT_MODEL = "minilm"
KEPT_AT_MOST = 200  # plan files that are read for the list
IN_URL = ("model", "plan", "minus", "parts", "adapter")


def restore(typed: Mapping[str, str | list[str]]) -> None:
    """Brings back the model and plan named by the URL, or last used; then writes them into the URL, with what was `typed` into the
    page that is opened. Once per run of the page."""
    if "model" not in st.session_state:
        st.session_state["model"] = st.query_params.get("model") or remembered("model", str) or DEFAULT_MODEL
        st.session_state["plan"] = st.query_params.get("plan") or _plan_of(st.session_state["model"])
        for key in ("minus", "parts", "adapter"):
            st.session_state[key] = st.query_params.get(key) or st.session_state.get(key)
    _into_url(typed)


def model_name() -> str:
    """What the user calls the chosen model."""
    return st.session_state.get("model", DEFAULT_MODEL)


def other_models() -> list[str]:
    """The catalogue's models with weights, but for the chosen one: what it can be compared with."""
    return [entry.name for entry in CATALOGUE.values() if entry.has_weights and entry.name != model_name()]


def choose_model(name: str) -> None:
    """Makes `name` the model of every page; the plan of another model is laid aside, and its own last one taken up again."""
    if name != st.session_state.get("model"):
        st.session_state["plan"] = _plan_of(name)
        for key in ("minus", "parts"):
            st.session_state.pop(key, None)
        forms.drop("strategy", "layers", "overlay", "beside")
        forms.follow_defaults()
    st.session_state["model"] = name
    _remember()


def look_at(*, minus: str | None, parts: bool) -> None:
    """What the Spectra page shows of the model: its weights or, with a base to subtract, its update; fused ones in parts as well."""
    st.session_state["minus"], st.session_state["parts"] = minus, "yes" if parts else None
    st.session_state.pop("layers", None)
    _into_url()


def open_adapter(folder: str | None) -> None:
    """Makes `folder` what the Adapters page shows."""
    st.session_state["adapter"] = folder
    _into_url()


def adapter() -> str | None:
    """The adapter folder that the Adapters page shows, or None."""
    return st.session_state.get("adapter")


def minus() -> str | None:
    """The base that the Spectra page subtracts from the model, or None."""
    return st.session_state.get("minus")


def parts() -> bool:
    """Whether the Spectra page takes fused projections apart."""
    return bool(st.session_state.get("parts"))


def checkpoint() -> Checkpoint:
    """The chosen model's inventory, if it is on this machine. Raises WorkbenchError with what to do otherwise."""
    return open_local(model_name())


def open_local(name: str, minus: str | None = None) -> Checkpoint:
    """The inventory of a model (minus another) that is on this machine, weights or not; nothing is downloaded."""
    return _open(name, minus, _stamp(name) + (_stamp(minus) if minus else ""))


def spectra(of: Checkpoint, *, parts: bool = False) -> Spectra | None:
    """The cached spectra of a model, or None when it was not scanned yet. parts: also of the parts of fused projections."""
    if not of.has_weights:
        return None
    try:
        return _spectra(of.fingerprint, parts, of)
    except _NotScanned:
        return None


def plan() -> RankPlan | None:
    """The chosen plan, or None. A plan file that went missing or broken counts as none."""
    file = plan_file()
    if file is None:
        return None
    try:
        return RankPlan.load(file)
    except WorkbenchError:
        return None


def lost_plan() -> str | None:
    """The name of the chosen plan where there is no such plan here, as in the address of another machine's page."""
    return None if plan() else st.session_state.get("plan")


def kept_plans() -> dict[str, RankPlan]:
    """The plans of the chosen model that were used on this machine: name -> plan, the newest first. Unreadable ones are left out."""
    found = {}
    for file in sorted(data_dir("plans").glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)[:KEPT_AT_MOST]:
        with contextlib.suppress(WorkbenchError):
            kept = RankPlan.load(file)
            if kept.model == model_name():
                found[file.stem] = kept
    return found


def plan_names() -> dict[str, str]:
    """What the person called plans: `identity` -> name."""
    known = remembered("plan-names", dict) or {}
    return {key: name for key, name in known.items() if isinstance(name, str)}


def name_plan(key: str, name: str) -> None:
    """Calls the plan with this `identity` so; an empty name takes its name away."""
    remember(
        **{"plan-names": {**{one: said for one, said in plan_names().items() if one != key}, **({key: name} if name else {})}}
    )


def plan_file() -> Path | None:
    """Where the chosen plan is kept, for the commands that take ``--plan``."""
    name = st.session_state.get("plan")
    return _plan_file(name) if name and name.isalnum() and _plan_file(name).is_file() else None


def identity(of: RankPlan) -> str:
    """A short name made of what decides an adapter: the ranks and the scaling."""
    said = json.dumps([of.model, of.strategy, of.alpha_over_r, of.budget, sorted(of.ranks.items())])
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def choose_plan(chosen: RankPlan | None) -> None:
    """Makes `chosen` the plan of every page and keeps it on disk."""
    if chosen is None:
        st.session_state["plan"] = None
    else:
        name = identity(chosen)
        if not _plan_file(name).is_file():
            chosen.save(_plan_file(name))
        st.session_state["plan"] = name
    _remember()


def dark() -> bool:
    """Whether the page is shown in the dark theme."""
    return getattr(st.context.theme, "type", None) == "dark"


@st.cache_resource(max_entries=16, show_spinner="Opening the model…")
def _open(name: str, minus: str | None, stamp: str) -> Checkpoint:
    return open_model(name, minus=minus, weights=False, download=False)


class _NotScanned(Exception):
    """Leaves `_spectra` without an answer that it would keep."""


@st.cache_resource(max_entries=8, show_spinner="Reading the spectra…")
def _spectra(fingerprint: str, parts: bool, _checkpoint: Checkpoint) -> Spectra:
    """Raises where there are none. That there are none is not to be kept, and cannot be taken back by the caller: a rerun that comes
    while the spinner goes ends the caller before it gets to do anything."""
    from analyzers.spectra import cached

    found = cached(_checkpoint, parts=parts)
    if found is None:
        raise _NotScanned
    return found


def _stamp(name: str) -> str:
    """Changes when a local folder's files do, or a hub model's weights arrive, so that a checkpoint is read anew."""
    path = local_path(name)
    if path is None:
        return str(weights_are_here(name))
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    stats = [(file.name, file_stamp(file.stat())) for file in files if file.suffix in (".safetensors", ".json")]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _plan_file(name: str) -> Path:
    return data_dir("plans") / f"{name}.json"


def in_url() -> dict[str, str]:
    """What the address says of every page."""
    return {key: st.session_state[key] for key in IN_URL if st.session_state.get(key)}


def _into_url(typed: Mapping[str, str | list[str]] | None = None) -> None:
    """In one step, so that the browser's history has one step too."""
    said = {key: st.session_state.get(key) for key in IN_URL}
    changed = {key: value for key, value in said.items() if value and st.query_params.get(key) != value}
    if changed or typed:
        st.query_params.update({**changed, **(typed or {})})
    for key in [key for key, value in said.items() if not value and key in st.query_params]:
        del st.query_params[key]


def _remember() -> None:
    _into_url()
    model, plan = st.session_state["model"], st.session_state.get("plan")
    remember(model=model, plan=plan, plans=_plans() | {model: plan})


def _plan_of(model: str) -> str | None:
    """The name of the plan that `model` was last used with."""
    name = _plans().get(model)
    return name if isinstance(name, str) else None


def _plans() -> dict:
    known = remembered("plans", dict)
    return {remembered("model", str): remembered("plan", str)} if known is None else known
