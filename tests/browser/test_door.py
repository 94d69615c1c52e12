"""The token in the address, in a real browser: in once, kept over reloads and links; and nothing on the page is refused by its policy."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import TOKEN
from tests.browser.test_walk import SLOW, clean, tab, value

pytestmark = pytest.mark.browser


def test_the_token_lets_in_once_and_for_all_links(browser, guarded):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(SLOW)
    said, missing = [], []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    page.goto(f"{guarded}/plan?model=roberta-large")
    expect(page.get_by_role("heading", name="This page asks for its token")).to_be_visible()
    said.clear(), missing.clear()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name="Plan", exact=True, level=1)).to_be_visible()
    assert "model=roberta-large" in page.url
    assert "token" not in page.url
    page.reload()
    tab(page, "Model")
    expect(value(page, "Parameters in matrices")).to_have_text("355 M")
    clean(page)
    link = context.new_page()
    link.goto(f"{guarded}/cost?model=minilm")
    expect(link.get_by_role("heading", name="Cost", exact=True, level=1)).to_be_visible()
    assert [text for text in said if "Content Security Policy" in text] == []
    assert missing == []  # nor is Streamlit's server looked for below the page's address
    context.close()
