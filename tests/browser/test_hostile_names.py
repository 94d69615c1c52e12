"""A model and a plan whose names somebody else chose, in a real browser: shown as text, and nothing is asked of another machine."""

from __future__ import annotations

import dataclasses
import shutil
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.browser.test_walk import SLOW, clean, tab

pytestmark = pytest.mark.browser
NAME = "![x](http:!evil.example!a.png) :red[model] $E=mc^2$ :smile: www.evil.example <b>x"


def test_names_are_text_and_nothing_is_fetched(browser, server, tiny_bert, tmp_path):
    from analyzers.ranks import Budget, make_plan
    from app import state
    from loraxs_core.checkpoint import Checkpoint

    folder = tmp_path / NAME
    shutil.copytree(tiny_bert, folder)
    plan = make_plan(Checkpoint.open(folder), "uniform", budget=Budget.like_rank(2))
    evidence = f"Because [of this](http://evil.example). {NAME}"
    plan = dataclasses.replace(plan, strategy=f"uniform {NAME}", evidence=evidence)
    plan.save(tmp_path / "data" / "plans" / f"{state.identity(plan)}.json")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SLOW)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server}/plan?plan={state.identity(plan)}&model={quote(str(folder))}")
    expect(page.get_by_text("In use on every page")).to_be_visible()
    for name in ("Plan", "Model", "Spectra", "Cost", "Adapters"):
        tab(page, name)
        clean(page)
        assert page.get_by_text("www.evil.example <b>x").count() >= 1
        for sign in (
            "a[href*=evil]",
            "img[src*=evil]",
            ".katex",
            "[data-testid=stMarkdownContainer] b",
            "[style*='color: red']",
        ):
            assert page.locator(sign).count() == 0, (name, sign)
        assert page.get_by_text("😄").count() == 0
    assert [address for address in asked if not address.startswith((server, "data:", "blob:"))] == []
    context.close()
