"""Ranks typed faster than the page answers: none is lost."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, TimeoutError, expect

from tests.browser.conftest import serving
from tests.browser.test_walk import SLOW, clean, value

pytestmark = pytest.mark.browser
ROW = 35  # pixels of one in Streamlit's tables
SLOWED = """
import time
from analyzers.plans import RankPlan
quick = RankPlan.frame
RankPlan.frame = lambda *given, **named: (time.sleep(0.6), quick(*given, **named))[1]
"""


def choose(page: Page, row: int) -> None:
    """Clicks the rank in this row of the table."""
    cells = page.get_by_test_id("stDataFrame").first.bounding_box()
    page.mouse.click(cells["x"] + 35, cells["y"] + 52 + row * ROW)


def open_field(page: Page, row: int, first: str) -> None:
    """Opens the cell's field by its first digit. A person waits for it, and clicks again where the page moved under the first click."""
    field = page.locator("#portal input")
    for last in (False, False, True):
        page.keyboard.press(first)
        try:
            field.wait_for(timeout=SLOW if last else 8000)
            return
        except TimeoutError:
            if last:
                raise
            choose(page, row)


@contextlib.contextmanager
def uniform_plan(browser, folder: Path) -> Iterator[Page]:
    """The Plan page with r = 8 everywhere and the first rank chosen; each of its reruns is slow."""
    with serving(folder, "--no-token", before=SLOWED) as address:
        page = browser.new_page(viewport={"width": 1440, "height": 1300})
        page.set_default_timeout(SLOW)
        page.goto(f"{address}/plan?strategy=Uniform&like-rank=8")
        expect(value(page, "Trained numbers")).to_have_text("1,536")
        clean(page)
        choose(page, 0)
        yield page


@pytest.mark.slow
def test_no_rank_is_lost_while_a_slow_rerun_is_on_its_way(browser, minilm_folder, tmp_path):
    with uniform_plan(browser, tmp_path) as page:
        for row, (rank, pause) in enumerate(((11, 300), (12, 900), (13, 500), (14, 2000))):
            first, *others = str(rank)
            open_field(page, row, first)
            page.wait_for_timeout(150)
            page.keyboard.type("".join(others), delay=80)
            page.keyboard.press("Enter")
            page.wait_for_timeout(pause)
        total = 1536 - 4 * 64 + sum(rank**2 for rank in (11, 12, 13, 14))
        expect(value(page, "Trained numbers")).to_have_text(f"{total:,}")
        expect(page.get_by_text("4 changed")).to_be_visible()
        undo = page.get_by_role("button", name="Undo")
        for _ in range(4):  # two that were typed within one answer are one step
            if page.get_by_text("none changed").is_visible():
                break
            undo.click()
            page.wait_for_timeout(3000)
            clean(page)
        expect(page.get_by_text("none changed")).to_be_visible()
        expect(value(page, "Trained numbers")).to_have_text(re.compile("^1,536$"))
        clean(page)


# As in a browser that is busy drawing the page: every timer comes late, and after the keys that were pressed meanwhile.
LATE = "const soon = window.setTimeout; window.setTimeout = (what, after, ...more) => soon(what, (after || 0) + 150, ...more);"


def test_no_rank_is_lost_in_a_busy_browser(browser, minilm_folder, tmp_path):
    ranks = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    with uniform_plan(browser, tmp_path) as page:
        open_field(page, 0, "9")  # the program of the field is fetched with the first
        page.keyboard.press("Escape")
        expect(page.locator("#portal input")).to_have_count(0)
        page.evaluate(LATE)
        for rank in ranks:  # straight on, waiting for nothing
            page.keyboard.type(str(rank), delay=40)
            page.keyboard.press("Enter")
            page.wait_for_timeout(40)
        total = 1536 - len(ranks) * 64 + sum(rank**2 for rank in ranks)
        expect(value(page, "Trained numbers")).to_have_text(f"{total:,}")
        expect(page.get_by_text(f"{len(ranks)} changed")).to_be_visible()
        clean(page)
