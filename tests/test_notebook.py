"""The notebook's cells run one after the other, and what they end in shows itself as a table."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "library.ipynb"


@pytest.fixture(scope="module")
def shown(minilm) -> list[object]:
    """What each cell ends in."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    values = []
    for cell in cells:
        if cell["cell_type"] == "code":
            *before, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(before, []), "cell", "exec"), names)
            values.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    return values


def test_ten_cells_run(shown):
    assert len(shown) == 10


def test_artefacts_show_themselves_as_tables(shown):
    html = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(html) == 8
    assert all(text.count("<table") == 1 for text in html)
    assert "MiniLM" in html[0] or "minilm" in html[0]
    assert "role plan for minilm: " in html[3]
    assert "… and 4 more" in html[3]  # of 24 layers


def test_the_notebook_keeps_no_output():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
