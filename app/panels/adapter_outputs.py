"""What can be written from an adapter: a plain LoRA, a merged checkpoint, a LoRA-XS of another rank. Each has a folder by default."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from app import components
from app.text import markdown
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.export import export_lora
from loraxs_core.merging import merge
from loraxs_core.paths import data_dir, user_path
from loraxs_core.servers import remarks

HEAD = "head.safetensors"  # where a comparison keeps the trained head of a sentence encoder


def ask(kind: str, label: str, name: str, button: str, icon: str, write: Callable[[Path], list[str]], *, about: tuple) -> None:
    """A field with a folder, a button that writes to it, and below what was written, for as long as the session lasts.

    kind: of the form, unique on the page. name: of the folder when nobody types another. write: takes the folder and returns
    sentences. about: what the result depends on; asked for the same again, it is not written twice.
    """
    key = f"{kind}-out-{hashlib.sha256(repr(about[:2]).encode()).hexdigest()[:8]}"
    written: dict[tuple, list[str]] = st.session_state.setdefault("written", {})
    typed = st.text_input(label, value=str(data_dir("exports") / name), key=key).strip()
    asked = (kind, *about, typed)
    if st.form_submit_button(button, icon=icon):
        with components.errors():
            folder = user_path(typed or data_dir("exports") / name)
            if not (asked in written and folder.exists()):
                with st.spinner("Writing…"):
                    written[asked] = write(folder)
    if asked in written:
        done, *further = written[asked]
        st.success(markdown(done), icon=":material/check:")
        for sentence in further:
            st.caption(markdown(sentence))


def export(folder: str, base: Checkpoint) -> None:
    """As a plain LoRA."""
    with st.form("export", border=True):
        st.markdown("**As a plain LoRA** that every server reads, with the same ΔW")
        uniform = st.toggle(
            "One rank for all modules, zero-padded: right in every server (off: smaller, for PEFT and llama.cpp)",
            value=True,
            key="export-uniform",
        )

        def write(out: Path) -> list[str]:
            written = export_lora(folder, base, out, uniform_rank=uniform)
            return [f"LoRA adapter written to {written}.", *remarks(written)]

        ask(
            "export", "Folder for the LoRA adapter", f"{stem(folder)}-lora", "Export", ":material/output:", write,
            about=(folder, base.fingerprint, uniform),
        )  # fmt: skip


def merged(folder: str, base: Checkpoint) -> None:
    """As a checkpoint without an adapter."""
    with st.form("merge", border=True):
        st.markdown("**Merged into the weights**: a plain checkpoint that needs no PEFT")

        def write(out: Path) -> list[str]:
            result = merge(folder, base, out)
            head = [f"The head trained with this adapter is no part of it: it stays in {Path(folder) / HEAD}."]
            return [f"Written to {result.out}. {result}", *(head if (Path(folder) / HEAD).is_file() else [])]

        ask(
            "merge", "Folder for the merged checkpoint", f"{stem(folder)}-merged", "Merge", ":material/merge:", write,
            about=(folder, base.fingerprint),
        )  # fmt: skip


def stem(folder: str | Path) -> str:
    """What outputs of an adapter are named after: its folder; of a comparison's, the run and the trial."""
    path = Path(folder)
    if path.name == "adapter" and path.parent.parent.name == "trials":
        return f"{path.parents[2].name}-{path.parent.name}"
    return path.name
