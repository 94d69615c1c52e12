"""Adapters: open one, check it against its base, convert a LoRA or a fine-tune into LoRA-XS, export and merge."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analyzers.compare import list_runs
from analyzers.methods import METHODS
from app import answers, charts, components, state
from app.commands.verify import MEANING
from app.forms import bound
from app.text import markdown
from app.units import bytes_text, count_text, percent_text, shape_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.convert import convert
from loraxs_core.errors import AdapterError
from loraxs_core.export import export_lora
from loraxs_core.loading import ADAPTER_CONFIG, ADAPTER_FILE, AdapterFolder
from loraxs_core.merging import merge
from loraxs_core.paths import user_path
from loraxs_core.progress import Progress
from loraxs_core.safetensors_file import file_stamp
from loraxs_core.servers import remarks
from sample_models import local_path


def show() -> None:
    """The page."""
    answer = components.heading(
        "Adapters", "What is in an adapter, whether it fits this base, and what LoRA-XS would keep of it."
    )
    base = state.checkpoint()
    if not base.has_weights:
        components.needs(
            f"{base.name} is an architecture without weights; adapters are checked against weights.",
            "model",
            "Choose another model",
        )
        return
    opened, sibling = st.tabs(["An adapter folder", "A fully fine-tuned sibling"])
    with opened, components.errors():
        if folder := _folder():
            _adapter(folder, base, answer)
    with sibling, components.errors():
        _sibling(base)


def _folder() -> str | None:
    """The adapter folder: typed, or one that a comparison on this machine has trained."""
    trained = {}
    for run in list_runs():
        for config in sorted(run.path.glob("trials/*/adapter/adapter_config.json")):
            trained[str(config.parent)] = f"{run.name}: {config.parent.parent.name}"
    return st.selectbox(
        "Adapter folder (type a path, or choose one trained on the Compare page)", list(trained), index=None, accept_new_options=True,
        format_func=lambda path: trained.get(path, path), placeholder="/path/to/adapter", **bound("adapter"),
    )  # fmt: skip


def _method(adapter: AdapterFolder) -> str:
    """What the method is called elsewhere on the page; PEFT's word for one that the workbench does not know."""
    labels = {name.replace("-", "").upper(): known.label for name, known in METHODS.items()}
    return labels.get(adapter.method, adapter.method)


def _adapter(folder: str, base: Checkpoint, answer: DeltaGenerator) -> None:
    place = local_path(folder)
    if place is None:
        raise AdapterError(f"There is no adapter folder {folder}; give the folder that has {ADAPTER_CONFIG} in it.")
    folder, adapter = str(place), AdapterFolder(place)
    config, entries = adapter.config, adapter.file.entries
    with components.cards(4):
        st.metric("Method", markdown(_method(adapter)), border=True)
        st.metric(
            "Rank (usual)",
            markdown(config.get("r", "—")),
            border=True,
            help=f"{len(config.get('rank_pattern') or {})} exceptions in rank_pattern",
        )
        st.metric("File", bytes_text(adapter.file.path.stat().st_size), border=True)
        st.metric(
            "Tensors",
            count_text(len(entries)),
            border=True,
            help=f"{len(adapter.heads)} of them belong to modules saved whole, such as the head",
        )
    with st.expander("Every tensor", icon=":material/table_rows:"):
        rows = [
            {"tensor": name, "shape": shape_text(entry.shape), "dtype": entry.torch_dtype, "bytes": entry.nbytes}
            for name, entry in entries.items()
        ]
        components.table(pd.DataFrame(rows), "tensors.csv", key="tensors")
    if adapter.method == "LORAXS":
        _verify(folder, base, answer)
        _write(folder, base)
    elif adapter.method == "LORA":
        components.answer(answer, _described(adapter))
        _convert(folder, folder, base, key="lora")
        _merge(folder, base)
    else:
        components.answer(answer, _described(adapter))
        st.info(
            f"{markdown(_method(adapter))} adapters can be merged; conversion is for LoRA and for full fine-tunes.",
            icon=":material/info:",
        )
        _merge(folder, base)


def _described(adapter: AdapterFolder) -> str:
    """What the page can say of an adapter whose bases are its own."""
    rank = f" of rank {markdown(adapter.config['r'])}" if "r" in adapter.config else ""
    return f"{markdown(_method(adapter))}{rank}, {bytes_text(adapter.file.path.stat().st_size)}: it brings all it needs, and can be merged"


@st.cache_data(max_entries=32, show_spinner="Rebuilding the bases of every module…")
def _checked(folder: str, changed: tuple[int, ...], fingerprint: str, _base: Checkpoint) -> list:
    from loraxs_core.tuner.folder import verify_adapter

    return verify_adapter(folder, _base)


def _verify(folder: str, base: Checkpoint, answer: DeltaGenerator) -> None:
    st.subheader("Module by module", anchor=False)
    checks = _checked(folder, file_stamp((Path(folder) / ADAPTER_FILE).stat()), base.fingerprint, base)
    wrong = next(((check.name, MEANING.get(check.status, check.status)) for check in checks if not check.ok), None)
    line = answers.adapter(sum(check.ok for check in checks), len(checks), base.name, wrong)
    components.answer(answer, line, icon=":green[:material/verified:]" if wrong is None else ":red[:material/error:]")
    rows = [
        {
            "module": check.name,
            "rank": check.rank,
            "verdict": MEANING.get(check.status, check.status),
            "relative error of ΔW": check.error,
            "usable": check.ok,
        }
        for check in checks
    ]
    components.table(
        pd.DataFrame(rows),
        "verification.csv",
        key="verification",
        height=300,
        columns={"relative error of ΔW": st.column_config.NumberColumn(format="%.1e")},
    )
    components.reproduce(
        f"loraxs verify {shlex.quote(folder)} --model {shlex.quote(base.name)}",
        "from loraxs_core.tuner.folder import verify_adapter\nfrom sample_models import open_model\n\n"
        f"for check in verify_adapter({folder!r}, open_model({base.name!r})):\n    print(check)",
    )


def _write(folder: str, base: Checkpoint) -> None:
    """Export as a plain LoRA, or merge."""
    st.subheader("Take it elsewhere", anchor=False)
    with st.form("export", border=True):
        st.markdown("**As a plain LoRA** that every server reads, with the same ΔW")
        out = st.text_input("Folder for the LoRA adapter", placeholder="new folder", key="export-out").strip()
        uniform = st.toggle(
            "One rank for all modules, zero-padded: right in every server (off: smaller, for PEFT and llama.cpp)",
            value=True,
            key="export-uniform",
        )
        if st.form_submit_button("Export", icon=":material/output:"):
            with components.errors(), st.spinner("Writing…"):
                written = export_lora(folder, base, _new_folder(out), uniform_rank=uniform)
                st.success(f"LoRA adapter written to {markdown(written)}.", icon=":material/check:")
                for remark in remarks(written):
                    st.caption(markdown(remark))
    _merge(folder, base)


def _merge(folder: str, base: Checkpoint) -> None:
    with st.form("merge", border=True):
        st.markdown("**Merged into the weights**: a plain checkpoint that needs no PEFT")
        out = st.text_input("Folder for the merged checkpoint", placeholder="new folder", key="merge-out").strip()
        if st.form_submit_button("Merge", icon=":material/merge:"):
            with components.errors(), st.spinner("Loading the model and merging…"):
                result = merge(folder, base, _new_folder(out))
                st.success(markdown(f"Written to {result.out}. {result}"), icon=":material/check:")


def _sibling(base: Checkpoint) -> None:
    names = state.other_models()
    source = st.selectbox(
        f"Fine-tune of {markdown(base.name)}: a catalogue name, folder or hub id on this machine", names, index=None, accept_new_options=True,
        placeholder="choose or type", **bound("sibling"),
    )  # fmt: skip
    if source:
        _convert(source, state.open_local(source), base, key="sibling")


def _convert(name: str, source: str | Checkpoint, base: Checkpoint, *, key: str) -> None:
    """What LoRA-XS keeps of the update, as a curve over the rank; and the adapter of the rank chosen."""
    st.subheader("What LoRA-XS would keep of it", anchor=False)
    known = st.session_state.setdefault("conversions", {})
    identity = (
        name,
        source.fingerprint if isinstance(source, Checkpoint) else str(file_stamp((Path(source) / ADAPTER_FILE).stat())),
        base.fingerprint,
    )
    if identity not in known:
        st.caption("Projects every weight's update onto the singular directions of its base weight: one matrix at a time.")
        if not st.button("Compute the curve", type="primary", icon=":material/play_arrow:", key=f"curve-{key}"):
            return
        with _bar() as report:
            known[identity] = convert(source, base, rank=1, progress=report)
        st.rerun()
    result = known[identity]
    kept, best = result.curve()
    rank = int(st.number_input("Rank", 1, len(kept), min(16, len(kept)), **bound(f"convert-rank-{key}")))
    components.chart(charts.kept_energy(kept, best, rank=rank, dark=state.dark()), f"kept-{key}")
    st.markdown(
        f"Rank {rank} keeps **{percent_text(kept[rank - 1])}** of ‖ΔW‖²; the best matrices of that rank would keep {percent_text(best[rank - 1])}. "
        "The difference is what freezing A and B to the base's directions costs."
    )
    for line in result.remarks(kept[rank - 1]):
        st.text(line)  # names out of a file, which are no Markdown
    rows = [
        {
            "module": one.name,
            "norm of ΔW": one.norm,
            "kept (%)": 100 * one.kept[min(rank, len(one.kept)) - 1],
            "best possible (%)": 100 * one.best[min(rank, len(one.best)) - 1],
        }
        for one in result.projections
    ]
    decimal = st.column_config.NumberColumn(format="%.2f")
    components.table(
        pd.DataFrame(rows),
        "kept-energy.csv",
        key=f"projections-{key}",
        height=280,
        columns=dict.fromkeys(("norm of ΔW", "kept (%)", "best possible (%)"), decimal),
    )
    with st.form(f"convert-{key}", border=True):
        out = st.text_input("Folder for the LoRA-XS adapter", placeholder="new folder", key=f"convert-out-{key}").strip()
        if st.form_submit_button(f"Convert at rank {rank}", icon=":material/transform:"):
            with components.errors(), _bar() as report:
                written = convert(source, base, rank=rank, out=_new_folder(out), progress=report).out
                st.success(f"LoRA-XS adapter written to {markdown(written)}.", icon=":material/check:")
    components.reproduce(
        f"loraxs convert {shlex.quote(name)} --model {shlex.quote(base.name)} --rank {rank} --out adapter",
        f"from loraxs_core.convert import convert\nfrom sample_models import open_model\n\nresult = convert({name!r}, open_model({base.name!r}), rank={rank}, out='adapter')\nprint(result.kept, result.best)"
        if not isinstance(source, Checkpoint)
        else f"from loraxs_core.convert import convert\nfrom sample_models import open_model\n\nresult = convert(open_model({name!r}), open_model({base.name!r}), rank={rank}, out='adapter')\nprint(result.kept, result.best)",
    )


class _bar:
    """A progress bar for the length of a block."""

    def __enter__(self):
        self.bar = st.progress(0.0)

        def report(progress: Progress) -> None:
            self.bar.progress(min(1.0, max(0.0, progress.fraction)), text=markdown(progress.message))

        return report

    def __exit__(self, *_: object) -> None:
        self.bar.empty()


def _new_folder(typed: str) -> Path:
    if not typed:
        raise AdapterError("Name a folder to write to.")
    return user_path(typed)
