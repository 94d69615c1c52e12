"""Model: choose one, and see what it is at a glance."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app import answers, components, frames, jobs, state
from app.forms import bound
from app.panels import kept
from app.text import markdown
from app.units import count_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import ModelNotFound, WorkbenchError
from sample_models import CATALOGUE, in_catalogue, is_hub_id, local_path, no_such_path

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

SOURCES = {"catalogue": "Catalogue", "folder": "A folder on this machine", "hub": "A model of the hub"}


def show() -> None:
    """The page."""
    answer = components.heading(
        "Model", "Choose what to adapt. The inventory is read from the files' headers; no weights are loaded."
    )
    source = st.segmented_control(
        "Where the model comes from",
        list(SOURCES),
        default=_source_of(state.model_name()),
        **bound("source", SOURCES.get),
    )
    refused = False
    if source == "folder":
        refused = _named("folder", "Folder with safetensors files (or one such file)", "~/models/my-model", "Open")
    elif source == "hub":
        refused = _named("hub-id", "Id on the Hugging Face hub", "owner/name", "Open or download")
    else:
        _catalogue()
    if refused:
        st.caption(f"Nothing was opened; in grey below is still {markdown(state.model_name())}.")
    with st.container(key=components.OUTDATED if refused else None):
        _chosen(answer.container(key=f"{components.OUTDATED}-answer") if refused else answer)
    kept.show()


def _source_of(name: str) -> str:
    if name in CATALOGUE:
        return "catalogue"
    return "folder" if local_path(name) or not is_hub_id(name) else "hub"


def _catalogue() -> None:
    """A searchable list; real models first, as they serve every page."""
    names = sorted(CATALOGUE, key=lambda name: not CATALOGUE[name].has_weights)
    now = state.model_name()
    picked = st.selectbox(
        "Model of the catalogue (type to search)",
        names,
        index=names.index(now) if now in names else None,
        format_func=_line,
        placeholder="Choose a model",
        key=f"catalogue-{now}",
    )
    if picked and picked != now:
        state.choose_model(picked)
        st.rerun()
    if now in CATALOGUE:
        st.caption(f"{CATALOGUE[now].summary} Licence: {CATALOGUE[now].licence}.")


def _line(name: str) -> str:
    entry = CATALOGUE[name]
    named = entry.label if entry.label.casefold() == name.casefold() else f"{name}  ·  {entry.label}"
    return f"{named}  ·  {'real weights' if entry.has_weights else 'architecture only'}"


def _named(key: str, label: str, placeholder: str, action: str) -> bool:
    """A text field that opens a folder or a hub id; the model chosen so far stays until another one opens. Whether what was typed
    opened nothing."""
    with st.form(f"open-{key}", border=False):
        field, button = st.columns([5, 1], vertical_alignment="bottom")
        typed = field.text_input(label, placeholder=placeholder, **bound(key)).strip()
        pressed = button.form_submit_button(action, type="primary", width="stretch")
    if not pressed:
        return False
    if not typed:
        st.warning(
            f"Type {'the path of a folder' if key == 'folder' else 'an id such as owner/name'} first.", icon=":material/edit:"
        )
        return False
    with components.errors():
        if key == "folder":
            found = local_path(typed)
            if found is None:
                raise no_such_path(typed)
            typed = str(found)
            state.open_local(typed)
        elif not is_hub_id(typed):
            raise ModelNotFound(f"{typed} is not written as the hub's ids are: owner/name{in_catalogue(typed)}.")
        state.choose_model(typed)
        st.rerun()
    return True


def _chosen(answer: DeltaGenerator) -> None:
    """What the chosen model is; or how to get it here."""
    name = state.model_name()
    running = jobs.status("fetch", name)
    if running and running.is_running:
        components.watch("fetch", name, f"Fetching {name}")
        return
    components.ended("fetch", name, "download")
    try:
        checkpoint = state.checkpoint()
    except WorkbenchError as error:
        fetchable = _source_of(name) != "folder"
        components.answer(answer, f"{markdown(name)} {'is not on this machine yet' if fetchable else 'cannot be opened'}")
        st.warning(markdown(error), icon=":material/cloud_download:" if fetchable else ":material/error:")
        if fetchable:
            _offer(name)
        return
    components.answer(answer, answers.model(checkpoint))
    _glance(checkpoint)


def _offer(name: str, *, architecture: bool = True) -> None:
    """Buttons that fetch a model; of the hub's, the architecture alone too, which is all that plans, sizes and memory need."""
    with st.container(horizontal=True):
        if st.button(f"Download {markdown(name)}", type="primary", icon=":material/download:", key="download"):
            jobs.start("fetch", name, name)
            st.rerun()
        if (
            architecture
            and _source_of(name) == "hub"
            and st.button(
                "Its architecture alone",
                icon=":material/architecture:",
                key="download-config",
                help="A few kilobytes: enough for plans, sizes and memory. Spectra and training need the weights.",
            )
        ):
            jobs.start("fetch", name, name, weights=False)
            st.rerun()


def _glance(checkpoint: Checkpoint) -> None:
    st.subheader(markdown(checkpoint.name), anchor=False)
    table = frames.roles(checkpoint)
    adaptable = sum(weight.is_adaptable for weight in checkpoint.weights)
    with components.cards(5):
        st.metric("Parameters in matrices", count_text(checkpoint.parameters), border=True)
        st.metric("Layers", count_text(checkpoint.layers), border=True)
        st.metric("Weight matrices", count_text(len(checkpoint.weights)), border=True)
        st.metric("of them take adapters", count_text(adaptable), border=True)
        st.metric("Stored as", markdown(frames.dtypes(checkpoint)), border=True)
    for note in _notes(checkpoint):
        st.info(markdown(note), icon=":material/info:")
    if not checkpoint.has_weights and _source_of(checkpoint.name) == "hub":
        _offer(checkpoint.name, architecture=False)
    components.table(
        table,
        f"{_safe(checkpoint.name)}-roles.csv",
        key="roles",
        columns={
            "parameters": st.column_config.NumberColumn(format="localized"),
            "share (%)": st.column_config.ProgressColumn("share of parameters", format="%.1f %%", min_value=0, max_value=100),
        },
    )
    # Made and sent when it is opened: some models have a thousand rows of it.
    listed = st.expander(
        f"All {len(checkpoint.weights)} weight matrices", icon=":material/table_rows:", key="all-matrices", on_change="rerun"
    )
    if listed.open:
        with listed:
            components.table(
                frames.inventory(checkpoint),
                f"{_safe(checkpoint.name)}-weights.csv",
                key="weights",
                columns={"parameters": st.column_config.NumberColumn(format="localized")},
            )
    components.reproduce(
        f"loraxs inspect {shlex.quote(checkpoint.name)}",
        "from sample_models import open_model\n\n"
        f"model = open_model({checkpoint.name!r})\n"
        "for weight in model.weights:\n    print(weight.name, weight.role, weight.shape, weight.dtype)",
    )
    label = "Next: see its spectra" if checkpoint.has_weights else "Next: plan ranks"
    st.page_link(
        components.page_of("spectra" if checkpoint.has_weights else "plan"), label=label, icon=":material/arrow_forward:"
    )


def _notes(checkpoint: Checkpoint) -> list[str]:
    """What a user should know about this model before going on."""
    notes = []
    if not checkpoint.has_weights:
        notes.append(
            "An architecture without weights: good for plans, sizes and memory. For spectra and training choose a model with weights."
        )
    if checkpoint.note:
        notes.append(checkpoint.note)
    tied = [weight for weight in checkpoint.weights if weight.tied_to]
    if tied:
        pairs = ", ".join(f"{weight.name} shares the numbers of {weight.tied_to}" for weight in tied)
        notes.append(f"Tied weights: {pairs}; they are counted once, and merging an adapter into one would change the other.")
    experts = sum(weight.kind == "expert" for weight in checkpoint.weights)
    if experts:
        notes.append(
            f"{experts} matrices belong to experts: they have spectra, and the strategies here put no adapter on them."
        )
    other = sum(weight.role == "other" for weight in checkpoint.weights)
    if other:
        notes.append(
            f"{other} matrices have a role no rule knows; they are listed as “other” and get an adapter only when named."
        )
    return notes


def _safe(name: str) -> str:
    return Path(name).name or "model"
