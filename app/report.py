"""One HTML file that says it all: figures and tables of the demo, or of a session of the page. Opens offline, in light and dark.

Knows HTML and figures; computes nothing. Each figure is given twice, drawn for light and for dark, and the page shows the one
that suits the reader's system (or the button).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.text import markdown, plain
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

ASSETS = Path(__file__).parent / "assets"
_NEGATIVE = re.compile(r"-[\d.,]+")


@dataclass(frozen=True)
class Table:
    """columns: titles with their units. rows: formatted cells. note: below it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """draw: takes `dark` and gives the figure. caption: what to see in it, one or two sentences. numbers: what it draws, for those who
    do not see it; Markdown has nothing else of it."""

    draw: Callable[[bool], go.Figure]
    caption: str = ""
    numbers: Table | None = None


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, and what belongs to it."""

    title: str
    text: str
    parts: Sequence[Figure | Table]


def write_report(
    path: Path, *, title: str, summary: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str
) -> Path:
    """Writes the report to `path`, whole or not at all; as `document`. Raises RunError when it cannot be written."""
    text = document(title=title, summary=summary, facts=facts, sections=sections, footer=footer)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def document(*, title: str, summary: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str) -> str:
    """The report as HTML. facts: (label, value) pairs for the cards at the top.

    All texts are escaped; no part of the file is fetched from anywhere.
    """
    from plotly.offline import get_plotlyjs

    figures: list[dict[str, dict]] = []
    body = "\n".join(_section(section, figures) for section in sections)
    cards = "".join(
        f'<div class="card"><div class="label">{_text(label)}</div><div class="value">{_text(value)}</div></div>'
        for label, value in facts
    )
    page = (ASSETS / "report.html").read_text(encoding="utf-8")
    values = {
        "TITLE": _text(title),
        "SUMMARY": _text(summary),
        "CARDS": cards,
        "BODY": body,
        "FOOTER": _text(footer),
        "FIGURES": json.dumps(figures).replace("<", "\\u003c"),  # no end of the script, no comment inside it
        "PLOTLY": get_plotlyjs(),
    }
    head, *rest = page.split("{{")
    pieces = [head]
    for piece in rest:  # one pass, so that nothing inside a value is taken for a place
        name, _, after = piece.partition("}}")
        pieces += [values[name], after]
    return "".join(pieces)


def as_markdown(*, title: str, summary: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str) -> str:
    """The same words and tables as Markdown; of a figure its caption and its numbers."""
    lines = [
        f"# {markdown(title)}",
        markdown(summary),
        "\n".join(f"- {markdown(label)}: {markdown(value)}" for label, value in facts),
    ]
    for section in sections:
        lines += [f"## {markdown(section.title)}", markdown(section.text)]
        for part in section.parts:
            lines += _table_lines(part) if isinstance(part, Table) else _figure_lines(part)
    return "\n\n".join([*(line for line in lines if line), markdown(footer)]) + "\n"


def _table_lines(table: Table) -> list[str]:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    return [lines, *([markdown(table.note)] if table.note else [])]


def _figure_lines(figure: Figure) -> list[str]:
    return [markdown(figure.caption), *_table_lines(figure.numbers)] if figure.numbers else []


def _cell(value: object) -> str:
    if value == "---" or _NEGATIVE.fullmatch(str(value)):  # a minus begins no list inside a table
        return str(value)
    return markdown(value).replace("|", "\\|")


def _section(section: Section, figures: list[dict[str, dict]]) -> str:
    parts = "\n".join(_table(part) if isinstance(part, Table) else _figure(part, figures) for part in section.parts)
    return f"<section><h2>{_text(section.title)}</h2><p>{_text(section.text)}</p>{parts}</section>"


def _figure(figure: Figure, figures: list[dict[str, dict]]) -> str:
    drawn = {name: json.loads(figure.draw(dark).to_json()) for name, dark in (("light", False), ("dark", True))}
    figures.append(drawn)
    height = drawn["light"]["layout"].get("height", 400)
    caption = f"<figcaption>{_text(figure.caption)}</figcaption>" if figure.caption else ""
    numbers = f"<details><summary>The numbers</summary>{_table(figure.numbers)}</details>" if figure.numbers else ""
    return f'<figure><div class="plot" style="min-height:{height}px"></div>{caption}{numbers}</figure>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def _text(value: object) -> str:
    return html.escape(plain(value, lines=True))
