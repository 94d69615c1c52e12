"""How the tests of the pages open one and read it: Streamlit runs it, no browser."""

from __future__ import annotations

import time
from pathlib import Path

from streamlit.testing.v1 import AppTest

from app import jobs
from loraxs_core.background import Status

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"


def page(
    model: str | Path, name: str = "model", plan: str | None = None, minus: str | Path | None = None, **session
) -> AppTest:
    """The page called `name` on `model` (and with the plan of that name, and that base subtracted), run once."""
    test = AppTest.from_file(str(MAIN), default_timeout=60)
    test.query_params["model"] = str(model)
    if plan:
        test.query_params["plan"] = plan
    if minus:
        test.query_params["minus"] = str(minus)
    for key, value in session.items():
        test.session_state[key] = value
    test.run()
    return test if name == "model" else go(test, name)


def go(test: AppTest, name: str) -> AppTest:
    """The same session on another page."""
    test._page_hash = test.session_state["pages"][name]._script_hash
    return test.run()


def ended(kind: str, key: str, seconds: float = 60) -> Status:
    """How the job ended, once it has."""
    deadline = time.monotonic() + seconds
    while (now := jobs.status(kind, key)).is_running:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    return now


def texts(test: AppTest) -> str:
    """Everything the page says."""
    kinds = (test.title, test.header, test.subheader, test.markdown, test.caption, test.info, test.warning, test.error)
    return "\n".join(element.value for kind in kinds for element in kind)


def healthy(test: AppTest) -> AppTest:
    """`test`, if it shows neither an exception nor an error box."""
    assert not test.exception, test.exception[0].message
    assert not test.error, test.error[0].value
    return test
