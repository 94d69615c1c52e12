"""How long a click takes to become a picture, beside an empty Streamlit page: time and the server's processor time, as ratios.

    python -m benchmarks.page_speed [--rounds 7] [--model minilm]

A real `loraxs app` whose results are all cached (the model scanned, a plan in use) and a Streamlit app of two pages with a title each,
in one browser. Each page is opened by a click on its name, from another page, and is there when the script has ended and all of its
figures, where it has some, are drawn. Rounds of both apps take turns, so that what else the machine does falls on both; medians are told,
and the server's memory (what is its own alone) before the clicks and after them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

EMPTY = """
import streamlit as st

def first():
    st.title("First", anchor=False)

def second():
    st.title("Second", anchor=False)

st.set_page_config(layout="wide")
st.navigation([st.Page(first, title="First", default=True), st.Page(second, title="Second")], position="top").run()
"""
PAGES = ("Model", "Spectra", "Plan", "Cost", "Compare", "Adapters")
DRAWN = {"Spectra": 2, "Plan": 1, "Cost": 2}  # figures of the page, all of which have to be there
LIMIT = 2.5  # times an empty page
DONE = """count => {
    const app = document.querySelector("[data-testid=stApp]");
    return app.dataset.testScriptState === "notRunning" && !document.querySelector("[data-stale=true]")
        && [...document.querySelectorAll(".js-plotly-plot")].filter(one => one.querySelector(".main-svg")).length >= count;
}"""


@dataclass
class Took:
    """seconds, processor: of each click."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def measure(rounds: int, model: str) -> tuple[Took, dict[str, Took], list[int]]:
    """Clicks of an empty app and of each page of the workbench, and the bytes that its server held before each round and after the last."""
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import serving
    from tests.browser.install import find

    path = find()  # before Playwright is started, which it asks itself
    if path is None:
        raise SystemExit("There is no Chromium on this machine; `python -m tests.browser.install` installs one.")
    empty, pages, held = Took(), {name: Took() for name in PAGES}, []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), "--no-token") as address,
        _empty_app(Path(folder)) as (nothing, empty_server),
        sync_playwright() as playwright,
    ):
        server = next(child for child in psutil.Process().children() if "app" in child.cmdline())
        places = {"LORAXS_CACHE": f"{folder}/cache", "LORAXS_DATA": f"{folder}/data"}
        command = [sys.executable, "-m", "app.cli", "scan", model]
        subprocess.run(command, env=os.environ | places, stdout=subprocess.DEVNULL, check=True)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page, blank = (browser.new_page(viewport={"width": 1440, "height": 900}) for _ in range(2))
        for one in (page, blank):
            one.set_default_timeout(120_000)
        page.goto(f"{address}/plan?model={model}")
        page.get_by_role("button", name="Use this plan").click()
        page.get_by_text("In use on every page").wait_for()
        blank.goto(nothing)
        blank.get_by_role("heading", name="First").wait_for()
        for number in range(-1, rounds):  # the first one fills the caches
            if number >= 0:
                held.append(server.memory_full_info().uss)
            for name in PAGES:
                title = "First" if blank.get_by_role("heading", name="Second").count() else "Second"
                _click(blank, title, 0, empty_server, empty if number >= 0 else Took())
                _click(page, name, DRAWN.get(name, 0), server, pages[name] if number >= 0 else Took())
        held.append(server.memory_full_info().uss)
        browser.close()
    return empty, pages, held


def _click(page, name: str, figures: int, server: psutil.Process, took: Took) -> None:
    used, began = _processor(server), time.perf_counter()
    page.get_by_test_id("stTopNavLink").filter(has_text=name).click()
    page.get_by_role("heading", name=name, exact=True, level=1).wait_for()
    page.wait_for_function(DONE, arg=figures)
    took.seconds.append(time.perf_counter() - began)
    took.processor.append(_processor(server) - used)


def _processor(process: psutil.Process) -> float:
    """Seconds that the server and what it started have computed."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


@contextlib.contextmanager
def _empty_app(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of a Streamlit app with nothing on its pages."""
    script = folder / "empty.py"
    script.write_text(EMPTY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}", "--server.headless=true"]
    process = subprocess.Popen(
        [*command, "--browser.gatherUsageStats=false", "--server.fileWatcherType=none"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2).close()
                break
            time.sleep(0.2)
        yield f"http://localhost:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="minilm")
    asked = parser.parse_args()
    empty, pages, held = measure(asked.rounds, asked.model)
    base, work = statistics.median(empty.seconds), statistics.median(empty.processor)
    print(
        f"an empty Streamlit page: {base:.3f} s, {1000 * work:.0f} ms of processor time (median of {len(empty.seconds)} clicks)"
    )
    above = []
    for name, took in pages.items():
        seconds, used = statistics.median(took.seconds), statistics.median(took.processor)
        print(
            f"{name:9} {seconds:.3f} s ({seconds / base:.1f} x), {1000 * used:.0f} ms of processor time ({used / work:.1f} x)"
        )
        if max(seconds / base, used / work) > LIMIT:
            above.append(name)
    print(f"the server held {held[0] >> 20} MiB before these clicks and {held[-1] >> 20} MiB after them")
    print(
        f"above {LIMIT} x: {', '.join(above) or 'none'}; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
