"""The whole path in a real browser: Model, Spectra (a real scan), Plan, Cost, Compare (a short sweep), results; light and dark."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
SLOW = 60_000  # milliseconds: first imports of torch and transformers on a slow machine
expect.set_options(timeout=SLOW)

# The most sentences "Best here" that stood on the page at one time.
COUNT_BEST = """() => {
    window.best = 0;
    const count = () => {
        const found = [...document.querySelectorAll("p")].filter(node => node.textContent.startsWith("Best here:"));
        window.best = Math.max(window.best, found.length);
    };
    new MutationObserver(count).observe(document.body, {childList: true, subtree: true, characterData: true});
    count();
}"""


def tab(page: Page, name: str) -> None:
    """Follows the navigation to a page and waits until it is drawn."""
    page.get_by_test_id("stTopNavLink").filter(has_text=name).click()
    expect(page.get_by_role("heading", name=name, exact=True, level=1)).to_be_visible()


def clean(page: Page) -> None:
    """No error box, no traceback, nothing left running."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def test_the_whole_path(browser, server):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(SLOW)
    page.goto(server)
    expect(page.get_by_text("22.7 M")).to_be_visible()
    clean(page)

    tab(page, "Spectra")
    page.get_by_role("button", name="Scan", exact=True).click()
    expect(page.get_by_text("Layer × module map")).to_be_visible()
    clean(page)
    squares = page.locator(".js-plotly-plot").first.locator(".points path")
    expect(squares).to_have_count(37)
    box = squares.nth(8).bounding_box()  # layer 1, value: the third square of the second layer
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.get_by_test_id("stMultiSelect").get_by_text("encoder.layer.1.attention.self.value")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Layer × module map")).to_be_visible()  # the scan is still there

    tab(page, "Plan")
    page.get_by_label("As many numbers as uniform rank").fill("8")
    page.keyboard.press("Enter")
    expect(
        page.get_by_test_id("stMetric").filter(has_text="Trained numbers").get_by_text(re.compile(r"^1,[45]\d\d$"))
    ).to_be_visible()
    page.get_by_role("button", name="Use this plan").click()
    expect(page.get_by_text("In use on every page")).to_be_visible()
    clean(page)
    assert "plan=" in page.url
    page.reload()
    expect(page.get_by_text("In use on every page")).to_be_visible()  # and so is the plan

    tab(page, "Cost")
    expect(page.get_by_text("The file of LoRA-XS is")).to_be_visible()
    page.get_by_role("tab", name="GPU memory of training").click()
    expect(page.get_by_text("LoRA-XS: peak reserved")).to_be_visible()
    clean(page)
    peak = page.get_by_test_id("stMetric").filter(has_text="LoRA-XS: peak reserved").get_by_test_id("stMetricValue")
    before = peak.inner_text()
    page.get_by_label("Sequences a step").fill("64")
    page.keyboard.press("Enter")
    expect(peak).not_to_have_text(before)
    expect(page.get_by_text("Gradient checkpointing would save")).to_be_visible()
    clean(page)

    tab(page, "Compare")
    page.get_by_label("Steps a trial").fill("3")
    page.get_by_label("Tokens a text").fill("16")
    page.get_by_text("Learning rates and evaluation").click()
    page.get_by_label("Evaluations a trial").fill("1")
    page.get_by_label("Validation examples at most").fill("16")
    page.get_by_label("Test examples at most").fill("32")
    page.keyboard.press("Enter")
    expect(page.get_by_text("4 trials of 3 steps")).to_be_visible()
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.reload()  # the run goes on, and is found again
    page.evaluate(COUNT_BEST)
    expect(page.get_by_text("Every trial")).to_be_visible(timeout=2 * SLOW)
    clean(page)
    assert page.evaluate("window.best") == 1  # the last results take the place of the first ones, at every moment
    expect(page.get_by_text("Best here:")).to_be_visible()
    expect(page.get_by_text("Accuracy against trained numbers")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_colour_the_page_and_its_figures(browser, server, scheme):
    page = browser.new_context(color_scheme=scheme).new_page()
    page.goto(f"{server}/plan")
    title = page.locator(".js-plotly-plot .xtitle").first
    expect(title).to_be_visible()
    background = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    ink = title.evaluate("node => getComputedStyle(node).fill")
    light, dark = ("rgb(255, 255, 255)", "rgb(27, 36, 48)"), ("rgb(17, 22, 29)", "rgb(232, 236, 241)")
    assert (background, ink) == (light if scheme == "light" else dark)


def test_an_error_is_a_box_with_one_sentence(browser, server):
    page = browser.new_page()
    page.goto(f"{server}/?model=/no/such/folder")
    box = page.get_by_test_id("stAlertContentWarning")
    expect(box).to_contain_text("There is no")
    expect(page.get_by_test_id("stException")).to_have_count(0)
