"""The report of a session: all that there is of it, in one file that asks nothing of the net."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from analyzers.compare.halving import Tuning
from analyzers.memory import MemorySettings, estimate_memory, find_gpu, usual_length
from analyzers.methods import MAIN_METHODS, METHODS
from analyzers.ranks import Budget, make_plan
from analyzers.spectra import cached
from analyzers.storage import adapter_size
from analyzers.units import MIB
from app.charts import module_rows, part_label
from app.report import Figure
from app.session_report import Session
from app.units import gib_text
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import go, healthy, page


def test_the_report_holds_model_spectra_plan_and_cost(scanned):
    checkpoint = Checkpoint.open(scanned)
    plan = make_plan(checkpoint, "role", budget=Budget.like_rank(4))
    session = Session(checkpoint, cached(checkpoint), plan, card=find_gpu("24"))
    html, text = session.html(), session.markdown()
    for title in ("Model", "Spectra", "Plan", "Cost", "GPU memory of training"):
        assert f"<h2>{title}</h2>" in html
        assert f"## {title}\n" in text
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", html)
    assert f"{plan.trainable:,} trained numbers" in text
    assert text.count("\n| ") >= len(plan.ranks)
    assert re.search(r"LoRA-XS fits .*: [\d.]+ .iB to", text)
    assert "Comparison" not in text  # there is none
    assert "## Spectra" not in Session(checkpoint).markdown()


def test_every_page_offers_it(scanned):
    for name in ("model", "plan", "adapters"):
        labels = [entry.label for entry in healthy(page(scanned, name)).get("download_button")]
        assert {"HTML, opens offline", "Markdown"} <= set(labels)


def tables(text: str) -> dict[tuple[str, str], list[dict[str, str]]]:
    """(section, first column) -> the rows of such tables of a Markdown text, each by column."""
    found, section, columns = {}, "", []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line[2:-2].split(" | ")] if line.startswith("|") else []
        section = line[3:] if line.startswith("## ") else section
        if not cells:
            columns = []
        elif not columns:
            columns = cells
            found.setdefault((section, columns[0]), [])
        elif set(cells) != {"---"}:
            found[section, columns[0]].append(dict(zip(columns, cells, strict=True)))
    return found


def test_the_numbers_of_every_figure_are_those_of_their_sources(scanned, run):
    checkpoint, card = Checkpoint.open(scanned), find_gpu("24")
    spectra, plan = cached(checkpoint), make_plan(checkpoint, "role", budget=Budget.like_rank(4))
    for trial, score in zip(run.settings.trials(), (0.50, 0.52, 0.90, 0.70), strict=True):  # of intervals that differ
        record = json.loads((run.trial_folder(trial.id) / "result.json").read_text())
        (run.trial_folder(trial.id) / "result.json").write_text(json.dumps(record | {"score": score}))
    session = Session(checkpoint, spectra, plan, run, card)
    figures = {section.title: part for section in session.sections() for part in section.parts if isinstance(part, Figure)}
    assert all(figure.numbers and figure.numbers.rows for figure in figures.values())
    assert list(figures) == ["Spectra", "Plan", "GPU memory of training", "Comparison"]
    said = tables(session.markdown())

    by_layer = {row["layer"]: row for row in said["Spectra", "layer"]}
    modules = spectra.frame().assign(module=lambda frame: module_rows(frame["name"].tolist()))
    for row in modules.itertuples():
        layer = "none" if pd.isna(row.layer) else f"{row.layer:.0f}"
        assert float(by_layer[layer][row.module]) == row.rank_90

    assert {row["module"]: int(row["rank"]) for row in said["Plan", "module"]} == dict(plan.ranks)

    step = MemorySettings(batch=8, sequence=usual_length(checkpoint))
    methods = {METHODS[name].label: step.but(method=name, plan=plan if name == "lora-xs" else None) for name in MAIN_METHODS}
    estimates = {label: estimate_memory(checkpoint, asked) for label, asked in methods.items()}
    parts = {row["in use at the peak (MiB)"]: row for row in said["GPU memory of training", "in use at the peak (MiB)"]}
    drawn = {trace.name: trace for trace in figures["GPU memory of training"].draw(False).data}
    reserved = drawn["reserved"]
    for label, estimate in estimates.items():
        for part, held in estimate.breakdown.items():
            bars = drawn[part_label(part)]
            assert float(parts[part_label(part)][label]) == pytest.approx(held / MIB, abs=0.06)
            assert dict(zip(bars.y, bars.x, strict=True))[label] == pytest.approx(held / MIB)
        at = list(reserved.y).index(label)
        ends = (reserved.x[at] - reserved.error_x.array[at], reserved.x[at] + reserved.error_x.array[at])
        assert ends == pytest.approx([end / MIB for end in estimate.interval])

    points = {trace.name: trace for trace in figures["Comparison"].draw(False).data}
    rows = [row for row in said["Comparison", "method"] if "95 % from" in row]
    summary = run.summary().set_index("label")
    assert summary["low"].nunique() == len(rows) == 2
    for row in rows:
        source, point = summary.loc[row["method"]], points[row["method"]]
        ends = (point.y[0] - point.error_y.arrayminus[0], point.y[0] + point.error_y.array[0])
        assert ends == pytest.approx((source["low"], source["high"]))
        told = [float(row[column]) for column in ("test Pearson r", "95 % from", "to")]
        assert told == pytest.approx([source["score"], source["low"], source["high"]], abs=6e-5)


def test_the_rates_that_were_tried_are_told(tiny_bert, run, monkeypatch):
    tried = Tuning(
        "lora", "LoRA", "lora", 0, (1e-4, 1e-3), (2, 4), 8, 16, "pearson", {1e-4: [0.1], 1e-3: [0.3, 0.4]}, chosen=1e-3
    )
    monkeypatch.setattr(type(run), "tunings", lambda self: [tried])
    rows = tables(Session(Checkpoint.open(tiny_bert), run=run).markdown())["Comparison", "method"]
    told = [row for row in rows if "learning rate" in row]
    assert [(row["learning rate"], row["score after how many steps"], row[""]) for row in told] == [
        ("0.0001", "0.100 after 2", ""),
        ("0.001", "0.300 after 2, 0.400 after 4", "chosen"),
    ]


@pytest.mark.usefixtures("fresh_page")
def test_cost_and_memory_are_those_that_the_page_shows(tiny_bert, monkeypatch):
    """Another fleet, rank and batch than the page begins with; a plan that was chosen afterwards is followed."""
    monkeypatch.setattr("app.views.cost.training_memory.show", lambda *asked: None)  # which has tests of its own
    checkpoint = Checkpoint.open(tiny_bert)
    test = healthy(page(tiny_bert, "cost", **{"adapters": 5000, "rank-lora": 3}))
    scenario, follows = go(test, "plan").session_state["on-show-fleet"]
    assert (scenario.adapters, scenario.ranks["lora"], follows) == (5000, 3, True)
    row = tables(Session(checkpoint, scenario=scenario).markdown())["Cost", "method"][1]
    assert (row["method"], row["rank"]) == ("LoRA", "3")
    assert row["one file (bytes)"] == f"{adapter_size(checkpoint, 'lora', rank=3).file_bytes:,}"
    text = Session(checkpoint, scenario=scenario).markdown()
    assert "a month for 5,000 adapters" in text

    step = MemorySettings(method="lora", rank=3, batch=2, sequence=16, gradient_checkpointing=True)
    text = Session(checkpoint, training={"lora": step}).markdown()
    assert "A step of 2 sequences of 16 tokens; gradient checkpointing True." in text
    peak = tables(text)["GPU memory of training", "method"][0]["peak reserved"]
    assert peak == gib_text(estimate_memory(checkpoint, step).peak_reserved)


def test_the_report_says_of_a_plan_what_the_page_says(scanned):
    checkpoint = Checkpoint.open(scanned)
    plan = make_plan(checkpoint, "role", budget=Budget.like_rank(4))
    state_of = healthy(page(scanned, "plan", strategy="role", **{"like-rank": 4}))
    assert state_of.header[0].value in Session(checkpoint, cached(checkpoint), plan).markdown()
