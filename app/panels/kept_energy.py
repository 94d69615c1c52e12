"""What LoRA-XS would keep of a weight update, as a curve over the rank; and the adapter of the rank chosen."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st

from app import charts, components
from app.forms import bound
from app.panels import adapter_outputs
from app.text import markdown
from app.units import percent_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.convert import convert
from loraxs_core.loading import ADAPTER_FILE
from loraxs_core.progress import Progress
from loraxs_core.safetensors_file import file_stamp


def show(name: str, source: str | Checkpoint, base: Checkpoint, *, key: str) -> None:
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
    components.chart(
        partial(charts.kept_energy, kept, best, rank=rank),
        f"kept-{key}",
        label="Share of the update that is kept, by rank",
    )
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

        def write(out: Path) -> list[str]:
            with _bar() as report:
                return [f"LoRA-XS adapter written to {convert(source, base, rank=rank, out=out, progress=report).out}."]

        adapter_outputs.ask(
            f"convert-{key}", "Folder for the LoRA-XS adapter", f"{adapter_outputs.stem(name)}-lora-xs-r{rank}",
            f"Convert at rank {rank}", ":material/transform:", write, about=(*identity, rank),
        )  # fmt: skip
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
