"""A real server of the page and a real browser; skipped, with the reason, where there is no browser."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.browser.install import find

TOKEN = "the-token-of-the-tests"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def browser():
    """Of one file: while playwright runs, an event loop does, in which code that later tests call could start none of its own."""
    from playwright.sync_api import sync_playwright

    path = find()
    if path is None:
        pytest.skip("no Chromium on this machine; `python -m tests.browser.install` installs one")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture
def server(minilm_folder, tmp_path):
    """The address of a page with data folders of its own, which asks for no token; the sample models of the user's cache are linked in."""
    with serving(tmp_path, "--no-token") as address:
        yield address


@pytest.fixture
def guarded(minilm_folder, tmp_path):
    """As `server`, asking for `TOKEN` as `loraxs app` does by itself."""
    with serving(tmp_path) as address:
        yield address


@contextlib.contextmanager
def serving(folder: Path, *options: str, before: str = ""):
    """The address of a `loraxs app` that keeps its data in `folder`. before: Python that is run first, in the same process."""
    from loraxs_core.paths import cache_dir

    own = folder / "cache"
    own.mkdir()
    (own / "samples").symlink_to(cache_dir("samples"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {"LORAXS_CACHE": str(own), "LORAXS_DATA": str(folder / "data"), "LORAXS_TOKEN": TOKEN}
    log = open(folder / "server.log", "wb")  # noqa: SIM115 (closed below, when the server has ended)
    process = subprocess.Popen(
        [sys.executable, "-c", f"{before}\nfrom app.cli import main\nmain()", "app", f"--port={port}", "--headless", *options],
        cwd=REPOSITORY,
        env=os.environ | places | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://localhost:{port}"
    try:
        _wait(address, process, folder / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        log.close()
    text = (folder / "server.log").read_text()
    assert "Traceback" not in text, text[-3000:]


def _wait(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"The page did not start: {log.read_text()[-2000:]}")
