"""The table of a comparison's results, formatted once for the terminal and for the demo's report."""

from __future__ import annotations

import pandas as pd

from app.units import bytes_text, count_text, percent_text
from loraxs_core.progress import seconds

RESULT_COLUMNS = ("method", "score", "trained numbers", "and in the head", "adapter", "training", "SVD (share)", "peak memory")


def summary_rows(summary: pd.DataFrame) -> list[tuple[str, ...]]:
    """The table of the race, formatted: `RESULT_COLUMNS`."""
    rows = []
    for row in summary.to_dict("records"):
        if "score" not in row or pd.isna(row["score"]):
            rows.append((row["label"], "failed", *[""] * (len(RESULT_COLUMNS) - 2)))
            continue
        rows.append(
            (
                row["label"],
                f"{row['score']:.3f}"
                + (f" ({row['low']:.3f} to {row['high']:.3f})" if row.get("interval") or row["seeds"] > 1 else ""),
                count_text(row["parameters"]),
                count_text(row["head_parameters"]),
                bytes_text(row["adapter_bytes"]),
                seconds(row["train_seconds"]),
                f"{row['svd_seconds']:.1f} s ({percent_text(row['svd_share'])})" if row["svd_seconds"] else "",
                f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
            )
        )
    return rows
