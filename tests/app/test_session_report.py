"""The report of a session: all that there is of it, in one file that asks nothing of the net."""

from __future__ import annotations

import re

from analyzers.memory import find_gpu
from analyzers.ranks import Budget, make_plan
from analyzers.spectra import cached
from app.session_report import Session
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import healthy, page


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
