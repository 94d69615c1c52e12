"""Reports and figures of things with hostile names: text, whatever they are called."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from tests.app.hostile import MARKS
from tests.app.pages import page


def finish(run, metric="accuracy") -> None:
    """Gives every trial of `run` that the first plan is of a record, so that there is something to report."""
    numbers = dict.fromkeys(
        ("adapter_bytes", "file_bytes", "seconds", "train_seconds", "svd_seconds", "svd_share", "peak_memory_bytes"), 1.0
    )
    with run.working() as writer:
        for trial in run.settings.trials():
            folder = run.trial_folder(trial.id)
            folder.mkdir(parents=True, exist_ok=True)
            writer.metric({**trial.about, "kind": "train", "step": 1, "epoch": 0.5, "value": 1.0})
            record = {**trial.about, **numbers, "rank": trial.rank, "metric": metric, "score": 0.5, "validation_score": 0.5,
                      "adapter_parameters": 9, "head_parameters": 3, "state": "done", "error": None}  # fmt: skip
            (folder / "result.json").write_text(json.dumps(record))
        writer.last_word(state="done")


def made_of(html: str) -> list[tuple]:
    """The tags of a page with their attributes, in order."""
    from html.parser import HTMLParser

    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            self.found.append((tag, attrs))

    reader = Tags()
    reader.feed(html)
    return reader.found


@pytest.fixture
def reported(hostile_model, hostile_run):
    """Sessions of a model, a plan and a run with names of that kind, and of the same with harmless names."""
    import dataclasses

    from analyzers.compare import RunFolder, SweepSettings
    from analyzers.ranks import Budget, make_plan
    from analyzers.spectra import scan
    from app.session_report import Session
    from loraxs_core.checkpoint import Checkpoint
    from loraxs_core.paths import data_dir

    checkpoint = Checkpoint.open(hostile_model)
    spectra = scan(checkpoint)
    plan = make_plan(checkpoint, "uniform", budget=Budget.like_rank(2))
    finish(hostile_run)
    sessions = []
    for name in (MARKS, "plain"):
        if name == "plain":
            plans = {"plain": plan, "other": plan}
            settings = dataclasses.replace(hostile_run.settings, model="plain", plans=plans)
            run = RunFolder.create(SweepSettings(**vars(settings)), data_dir("runs") / "plain")
            finish(run)
        else:
            run = hostile_run
        words = {"strategy": name, "evidence": f"{name}.", "notes": (name,), "model": name, "requested": name}
        own = checkpoint if name == MARKS else dataclasses.replace(checkpoint, name=name)
        sessions.append(Session(own, spectra, dataclasses.replace(plan, **words), run))
    return sessions


def test_the_report_of_a_session_is_built_alike_whatever_things_are_called(reported):
    """HTML: the same tags with the same attributes as with harmless names. Markdown: no links, images or HTML."""
    from markdown_it import MarkdownIt

    hostile, plain = (session.html() for session in reported)
    assert "Comparison" in hostile
    assert "$x$" in hostile
    assert made_of(hostile) == made_of(plain)
    for mark in ("\x1b", "\u202e"):
        assert mark not in hostile
    parser = MarkdownIt("commonmark", {"linkify": False}).enable(["strikethrough", "table"])
    kinds = []
    for session in reported:
        text = session.markdown()
        assert not {"\x1b", "\u202e"} & set(text)
        found = parser.parse(text)
        inside = [
            token for block in found for token in block.children or [] if token.type not in ("code_inline", "text", "softbreak")
        ]
        assert not inside, [token.content for token in inside][:5]
        kinds.append([block.type for block in found])
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", ["model", "spectra", "plan", "cost", "adapters", "compare"])
def test_every_page_gives_that_report(hostile_model, reported, monkeypatch, name):
    import streamlit as st

    given, button = {}, st.download_button
    monkeypatch.setattr(
        st,
        "download_button",
        lambda *said, **named: given.__setitem__(named.get("key"), named.get("data")) or button(*said, **named),
    )
    test = page(hostile_model, name)
    assert not test.exception, test.exception[0].message
    html, text = given["take-report.html"]().decode(), given["take-report.md"]().decode()
    plain = {tag for tag, _ in made_of(reported[1].html())}
    assert {tag for tag, _ in made_of(html)} <= plain
    assert "$x$" in html
    assert not {"\x1b", "\u202e"} & set(html + text)
    assert "![x](data:" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)


def test_figures_and_the_report_show_them_as_text(tmp_path):
    from app import charts
    from app.report import Figure, Section, Table, write_report

    name = "<b>x</b><a href='http://evil.example'>y</a> %{y} $x$</script><!--<script>"
    frame = pd.DataFrame(
        {"name": [name], "role": ["other"], "layer": [0], "shape": ["1 x 1"], "rank": [3], "method": ["lora"], "label": [name]}
    )
    drawn = [
        charts.layer_map(frame.assign(sigma_max=1.0), "sigma_max"),
        charts.rank_bars(frame),
        charts.rank_comparison(frame.assign(plan=name)),
        charts.spectrum({name: np.array([2.0, 1.0])}, {name: 1}, overlay={name: np.array([2.0, 1.0])}, overlay_label=name),
        charts.cumulative_energy({name: np.array([2.0, 1.0])}, {name: 1}),
        charts.density(np.array([2.0, 1.0]), (np.array([1.0]), np.array([1.0])), label=name),
        charts.accuracy_against_parameters(frame.assign(parameters=5, score=0.5, low=0.4, high=0.6)),
        charts.storage_bars(frame.assign(bytes=5)),
        charts.training_curves(
            pd.DataFrame(
                {
                    "trial": ["a"],
                    "method": ["lora"],
                    "label": [name],
                    "seed": [0],
                    "learning_rate": [1.0],
                    "kind": ["eval"],
                    "step": [1],
                    "value": [1.0],
                }
            )
        ),
    ]
    for chart in drawn:
        document = chart.to_dict()
        for trace in document["data"]:
            trace.pop("customdata", None) if "<b>x</b>" in str(trace.get("customdata", [[""]])[0][0]) else None
        assert "<b>x" not in str(document)
        assert "%{y} $x$" not in str(document)
        assert "&lt;b&gt;x" in str(document)
    path = write_report(
        tmp_path / "r.html", title=name, summary=name, facts=[(name, name)], footer=name,
        sections=[Section(name, name, [Table([name], [[name]], name), Figure(lambda dark: drawn[1], name)])],
    )  # fmt: skip
    page_text = path.read_text(encoding="utf-8")
    assert "<b>x" not in page_text
    assert page_text.count("<script") == page_text.count("</script>")
    assert "<!--<script" not in page_text
