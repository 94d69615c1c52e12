"""What was typed on a page is there after a reload, in a new tab with the copied address, and after the back button."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.test_walk import SLOW, still, tab

pytestmark = pytest.mark.browser

# Address -> what is typed there: (role, label, value, value as the field says it).
TYPED = {
    "": [("textbox", "Id on the Hugging Face hub", "no/model", "no/model")],
    "spectra": [
        ("combobox", "Colour shows", "Stable", "Stable rank (directions)"),
        ("combobox", "Beside a second model", "minilm-sre", "minilm-sre"),
    ],
    "plan": [
        ("combobox", "Strategy", "By role", "By role"),
        ("combobox", "Budget", "Numbers", "Numbers"),
        ("spinbutton", "Trained numbers at most", "3000", "3000"),
        ("spinbutton", "Smallest rank", "2", "2"),
        ("spinbutton", "Largest rank", "20", "20"),
        ("textbox", "Pinned ranks", "attention.self.query=4", "attention.self.query=4"),
        ("textbox", "Left out", "attention.self.value", "attention.self.value"),
        ("spinbutton", "Ranks are multiples of", "2", "2"),
        ("combobox", "One rank for", "one in all layers", "one in all layers of a role"),
        ("spinbutton", "Scaling α/r, the same in every layer", "2", "2.00"),
    ],
    "cost": [
        ("spinbutton", "Rank of LoRA", "12", "12"),
        ("spinbutton", "Adapters kept", "5000", "5000"),
        ("spinbutton", "Storage ($ per GB and month)", "0.5", "0.5000"),
    ],
    "cost?cost-tab=GPU+memory+of+training": [
        ("combobox", "My GPU", "A100 80", "A100 80"),
        ("spinbutton", "Sequences a step", "4", "4"),
    ],
    "compare": [
        ("combobox", "Task", "MRPC", "MRPC"),
        ("spinbutton", "Seeds", "4", "4"),
        ("spinbutton", "Steps a trial", "55", "55"),
        ("textbox", "LoRA: learning rates", "0.001 0.002", "0.001 0.002"),
    ],
    "adapters": [("combobox", "Adapter folder", "/no/such/adapter", "/no/such/adapter")],
}
# What has to be clicked before those are there.
FIRST = {"": "A model of the hub"}
UNFOLDED = {"plan": "Pins, exclusions and more", "cost": "Prices and serving", "compare": "Learning rates and evaluation"}
FAST = ("plan",)


def field(page: Page, role: str, label: str) -> Locator:
    """Unseen ones too, as of what is folded up."""
    return page.get_by_role(role, name=label, include_hidden=True).and_(page.locator("input")).first


def enter(page: Page, role: str, label: str, value: str) -> None:
    place = field(page, role, label)
    if role == "combobox":
        place.click()
        page.keyboard.type(value)
        expect(page.get_by_role("option").first).to_contain_text(value)
    else:
        place.fill(value)
    before = page.url
    page.keyboard.press("Enter")
    if label != "My GPU":  # of the person, not of a page
        expect(page).not_to_have_url(before)
    still(page)


@pytest.mark.parametrize("address", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TYPED])
def test_what_was_typed_is_there_again(browser, server, address):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.goto(f"{server}/{address}")
    if address == "spectra":
        page.get_by_role("button", name="Scan", exact=True).click()
    for words in (FIRST.get(address), UNFOLDED.get(address)):
        if words:
            page.get_by_text(words, exact=True).click()
    for role, label, value, _ in TYPED[address]:
        enter(page, role, label, value)
    said(page, address)

    page.reload()
    said(page, address)

    title = page.get_by_role("heading", level=1).inner_text()
    copied = context.new_page()
    copied.goto(page.url)
    said(copied, address)
    copied.close()

    tab(page, "Plan" if title != "Plan" else "Model")
    expect(page).to_have_url(re.compile(r"/(plan)?\?.*model="))  # the other page is a whole step of the browser's history
    page.go_back()
    expect(page.get_by_role("heading", level=1, name=title, exact=True)).to_be_visible()
    said(page, address)
    context.close()


def test_going_back_is_one_press_a_page(browser, server):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.goto(f"{server}/plan?model=minilm")
    still(page)
    enter(page, "spinbutton", "Smallest rank", "2")
    steps = page.evaluate("history.length")
    for title in ("Compare", "Plan", "Cost"):  # what was typed leaves the address and comes back into it
        tab(page, title)
        expect(page).to_have_url(
            re.compile("min-rank=2") if title == "Plan" else re.compile(rf"/{title.lower()}\?.*model=minilm")
        )
        steps += 1
        assert page.evaluate("history.length") == steps
    for title in ("Plan", "Compare", "Plan"):
        page.go_back()
        expect(page.get_by_role("heading", level=1, name=title, exact=True)).to_be_visible()
        still(page)
        if title == "Plan":
            expect(page).to_have_url(re.compile("min-rank=2"))
            expect(field(page, "spinbutton", "Smallest rank")).to_have_value("2")
    context.close()


def said(page: Page, address: str) -> None:
    for role, label, _, words in TYPED[address]:
        expect(field(page, role, label)).to_have_value(words)
