"""Tables for notebooks: what an artefact shows of itself where a cell ends in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

ROWS = 20  # that a cell shows; the frame of an artefact has them all


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, total: int | None = None) -> str:
    """An HTML table of the first `ROWS` of `rows`, numbers to the right; below it how many of `total` are left out.

    >>> table("A <model>", ["name", "rank"], [("q", 4)])
    '<table><caption>A &lt;model&gt;</caption><tr><th>name</th><th>rank</th></tr><tr><td>q</td><td style="text-align:right">4</td></tr></table>'
    """
    shown = list(islice(rows, ROWS))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in shown)
    left = (len(shown) if total is None else total) - len(shown)
    rest = f'<tr><td colspan="{len(columns)}">… and {left:,} more</td></tr>' if left > 0 else ""
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}{rest}</table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td style="text-align:right">{value:.4g}</td>'
    if isinstance(value, int):
        return f'<td style="text-align:right">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"
