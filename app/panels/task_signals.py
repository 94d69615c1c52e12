"""What a task says about ranks, for the strategies that follow one: measured here as a job, or taken from a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import streamlit as st

from analyzers.plans import PlanSettings
from analyzers.ranks import STRATEGIES, Signals
from app import components, jobs, state
from app.forms import bound
from app.panels import task_input
from app.text import markdown
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError, WorkbenchError
from loraxs_core.paths import data_dir
from loraxs_core.safetensors_file import file_stamp

KEY = "signals"
SPREAD = 2  # strategies give a layer up to twice the uniform rank: so far it is measured


class NotYet(PlanError):
    """Nothing is wrong, but the plan waits for something."""


def show(checkpoint: Checkpoint, settings: PlanSettings) -> Path | None:
    """The file of the signals to follow; None where the strategy needs none. Raises `NotYet` where there are none yet."""
    kind = STRATEGIES[settings.strategy].signal
    if not kind:
        return None
    st.markdown("**What a task says**")
    kept = _kept(checkpoint)
    chosen = None
    if kept:
        if st.session_state.get(KEY) not in kept:
            st.session_state.pop(KEY, None)
        labels = {name: _line(found, kind) for name, (_, found) in kept.items()}
        chosen = st.selectbox("Measured on", list(kept), **bound(KEY, labels.get))
    going_on = _another(checkpoint, settings, expanded=not kept)
    if chosen is not None:
        return kept[chosen][0]
    if going_on:
        raise NotYet("The task is being measured; the plan is made when that is done.")
    raise NotYet(
        f"This strategy follows a task, and none has been measured on {checkpoint.name} yet: choose one to the left and press Measure, "
        "or give a file that loraxs measure wrote."
    )


def loaded(path: Path) -> Signals:
    """The signals in `path`, read once for as long as the file does not change. Raises PlanError."""
    return _loaded(str(path), stamp(path))


def stamp(path: Path) -> str:
    """Changes when the file does."""
    try:
        return str(file_stamp(path.stat()))
    except OSError:
        return ""


@st.cache_resource(max_entries=32, show_spinner=False)
def _loaded(path: str, stamp: str) -> Signals:
    return Signals.load(path)


def _kept(checkpoint: Checkpoint) -> dict[str, tuple[Path, Signals]]:
    """The signals measured on this model: name -> (file, what it holds), the newest first. Unreadable ones are left out."""
    found = {}
    for file in sorted(data_dir("signals").glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            signals = loaded(file)
        except WorkbenchError:
            continue
        if signals.model == checkpoint.name:
            found[file.stem] = (file, signals)
    return found


def _line(signals: Signals, kind: str) -> str:
    """Signals in a list."""
    layers = signals.curves.get(kind, {})
    agreement = f", halves agree {signals.agreement(kind, list(layers)):.2f}" if layers else ""
    return f"{signals.task}: {signals.batches} batches, {len(layers)} layers{agreement}"


def _another(checkpoint: Checkpoint, settings: PlanSettings, *, expanded: bool) -> bool:
    """Measuring a task, and the upload of a file; whether one is being measured now."""
    job = checkpoint.fingerprint
    running = jobs.status("measure", job)
    if running and running.is_running:
        components.watch("measure", job, "Measuring")
        st.caption("It goes on when you leave this page or close it.")
        return True
    components.ended("measure", job, "measurement")
    with st.expander("Measure a task", icon=":material/timer:", expanded=expanded):
        task, usable = task_input.show()
        st.caption(
            "Reads up to 24 batches of 16, no example twice: gradients at the start, a short warm-up, activations, each from two halves of the data."
        )
        if st.button("Measure", key="measure-task", icon=":material/play_arrow:", disabled=not usable, width="stretch"):
            options = {
                **task,
                "targets": settings.targets,
                "top": SPREAD * settings.budget.value if settings.budget.kind == "like_rank" else 32,
            }
            jobs.start("measure", state.model_name(), job, out=str(_place(checkpoint, options)), **options)
            st.rerun()
        st.file_uploader(
            "Or the file of `loraxs measure`", type="json", key="signals-upload", on_change=_upload, args=(checkpoint,)
        )
        if said := st.session_state.get("signals-said"):
            st.error(markdown(said), icon=":material/error:")
    return False


def _place(checkpoint: Checkpoint, options: dict) -> Path:
    words = json.dumps([checkpoint.fingerprint, options], sort_keys=True)
    return data_dir("signals") / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"


def _upload(checkpoint: Checkpoint) -> None:
    st.session_state.pop("signals-said", None)
    file = st.session_state["signals-upload"]
    if file is None:
        return
    place = _place(checkpoint, {"file": hashlib.sha256(file.getvalue()).hexdigest()})
    try:
        found = Signals.from_json(file.getvalue(), file.name)
        if found.model != checkpoint.name:
            raise PlanError(f"{file.name} holds the signals of {found.model}, not of {checkpoint.name}; open that model first.")
        found.save(place)
        st.session_state[KEY] = place.stem
    except WorkbenchError as error:
        st.session_state["signals-said"] = str(error)
