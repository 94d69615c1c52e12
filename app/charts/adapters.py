"""Figures of adapters: what frozen bases keep of a weight update."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from app.charts.theme import INK, MUTED, figure, method_color


def kept_energy(kept: np.ndarray, best: np.ndarray, *, rank: int | None = None, dark: bool = False) -> go.Figure:
    """The share of ‖ΔW‖² that LoRA-XS of each rank keeps, beside the best matrix of that rank; `rank` is marked.

    kept, best: shares (0 to 1) at rank 1, 2, …
    """
    chart = figure(dark, height=380, x="rank r of every module", y="kept of the update, ‖ΔW‖² (%)")
    ranks = np.arange(1, len(kept) + 1)
    for values, name, line in (
        (kept, "LoRA-XS: frozen bases", {"color": method_color("lora-xs"), "width": 2.5}),
        (best, "best possible: SVD of ΔW", {"color": MUTED[dark], "width": 2, "dash": "dash"}),
    ):
        hover = "rank %{x}: %{y:.1f} %<extra>" + name + "</extra>"
        chart.add_scatter(x=ranks, y=100 * np.asarray(values), mode="lines", name=name, line=line, hovertemplate=hover)
    if rank:
        chart.add_vline(x=rank, line={"color": INK[dark], "width": 1.5, "dash": "dot"})
    chart.update_xaxes(type="log", dtick=1)
    chart.update_yaxes(range=[0, 103])
    return chart
