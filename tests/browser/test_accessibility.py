"""Every page in both themes, judged by axe: contrast, names of charts and inputs, order of headings."""

from __future__ import annotations

import pytest

from tests.browser.test_walk import SLOW, clean

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = ("", "spectra", "plan", "cost", "cost?cost-tab=GPU+memory+of+training", "compare", "adapters")
# Streamlit's own: an icon that is hidden from nobody, a region without a landmark.
OUT_OF_OUR_HANDS = {"region", "landmark-one-main", "page-has-heading-one"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, server, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_context(color_scheme=scheme, viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(SLOW)
    found = []
    for path in PAGES:
        page.goto(f"{server}/{path}")
        page.get_by_role("heading", level=1).wait_for()
        clean(page)
        for violation in Axe().run(page).response["violations"]:
            if violation["id"] not in OUT_OF_OUR_HANDS:
                found.append((path, violation["id"], violation["nodes"][0]["html"][:200]))
    assert found == []
