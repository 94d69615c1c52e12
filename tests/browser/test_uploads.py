"""Files that a person drops onto the page, in a real browser: taken, or refused in one sentence that is in view; kept over a reload."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.test_walk import SLOW, still, value

pytestmark = pytest.mark.browser


def folded(page: Page, label: str) -> Locator:
    """What is folded up under `label`, open."""
    box = page.get_by_test_id("stExpander").filter(has_text=label)
    if not box.get_by_test_id("stFileUploaderDropzone").first.is_visible():
        box.get_by_text(label, exact=True).click()
    expect(box.get_by_test_id("stFileUploaderDropzone").first).to_be_visible()
    return box


def drop(page: Page, box: Locator, file: Path) -> None:
    box.locator("input[type=file]").first.set_input_files(file)
    expect(box.get_by_text(file.name, exact=True)).to_be_visible()
    still(page)


@pytest.mark.slow
def test_a_plan_file_is_taken_and_a_wrong_one_is_a_sentence(browser, server, minilm, tiny_bert, tmp_path):
    from analyzers.ranks import Budget, make_plan
    from loraxs_core.checkpoint import Checkpoint

    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(SLOW)
    page.goto(f"{server}/plan")
    expect(page.get_by_text("Open a plan", exact=True)).to_be_visible()
    still(page)
    other = make_plan(Checkpoint.open(tiny_bert), "uniform", budget=Budget.like_rank(2)).save(tmp_path / "other.json")
    cut = tmp_path / "cut.json"
    cut.write_text("{")
    for wrong in (cut, other):
        box = folded(page, "Open a plan")
        drop(page, box, wrong)
        expect(box.get_by_test_id("stAlertContentError")).to_be_in_viewport()
        expect(page.get_by_text("no plan yet")).to_be_visible()
    own = make_plan(minilm, "uniform", budget=Budget.like_rank(5)).save(tmp_path / "own.json")
    folded(page, "Open a plan").locator("input[type=file]").set_input_files(own)
    expect(page.get_by_text("In use on every page")).to_be_visible()
    expect(page.get_by_role("heading", level=2).first).to_contain_text("Rank 5")
    page.reload()
    expect(page.get_by_text("In use on every page")).to_be_visible()
    expect(value(page, "Trained numbers")).to_have_text("600")


def data_files(folder: Path) -> dict[str, Path]:
    """Name -> a file of 60 rows, as people have them, or as they should not be."""
    words = [f"a {('good', 'bad')[row % 2]} film with number {row}" for row in range(60)]
    table = pd.DataFrame({"review": words, "verdict": [("pos", "neg")[row % 2] for row in range(60)]})
    latin = table.assign(review=table["review"] + " café")
    asked = [{"instruction": f"Say {row}", "input": text, "output": str(row)} for row, text in enumerate(words)]
    said = [{"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]} for text in words]
    written = {
        "labelled.csv": table.to_csv(index=False).encode(),
        "latin.csv": latin.to_csv(index=False).encode("latin-1"),
        "numbers.csv": pd.DataFrame({"a": range(60), "b": range(60)}).to_csv(index=False).encode(),
        "alpaca.jsonl": "\n".join(map(json.dumps, asked)).encode(),
        "sharegpt.json": json.dumps(said).encode(),
        "broken.parquet": b"PAR1" + bytes(200),
        "cut.jsonl": b'{"review": "a"\n{"review": "b"}\n',
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    table.to_parquet(folder / "labelled.parquet")
    return {file.name: file for file in folder.iterdir()}


@pytest.mark.slow
def test_data_of_ones_own_is_taken_or_refused_in_a_sentence(browser, server, tmp_path):
    files = data_files(tmp_path)
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(SLOW)
    page.goto(f"{server}/compare")
    expect(page.get_by_text("Your own data", exact=True)).to_be_visible()
    still(page)
    box = lambda: folded(page, "Your own data")  # noqa: E731
    task = page.get_by_role("combobox", name="Task")
    scored = page.get_by_text("scored by")
    for name, metric in (("labelled.csv", "accuracy"), ("labelled.parquet", "accuracy")):
        drop(page, box(), files[name])
        expect(task).to_have_value(re.compile(f"^{re.escape(name)}"))
        expect(scored).to_contain_text(metric)
    for name in ("alpaca.jsonl", "sharegpt.json"):
        drop(page, box(), files[name])
        expect(task).to_have_value(re.compile(f"^{re.escape(name)}"))
        expect(page.get_by_text("60 rows; the first 5 above")).to_be_visible()
    drop(page, box(), files["numbers.csv"])
    expect(page.get_by_text("holds numbers alone")).to_be_visible()
    refused = {"latin.csv": "is not UTF-8 text", "broken.parquet": "not a parquet file", "cut.jsonl": "JSON parse error"}
    for name, words in refused.items():
        drop(page, box(), files[name])
        expect(page.get_by_test_id("stAlertContentError").filter(has_text=words)).to_be_in_viewport()
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    drop(page, box(), files["labelled.csv"])
    expect(task).to_have_value(re.compile(r"^labelled\.csv"))
    page.reload()
    expect(task).to_have_value(re.compile(r"^labelled\.csv"))
    expect(scored).to_contain_text("accuracy")
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()
