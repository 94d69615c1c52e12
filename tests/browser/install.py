"""Makes sure that there is a browser for the tests: ``python -m tests.browser.install``.

Takes what is on the machine; else Debian's chromium where apt-get may be used; else playwright's own. Where none of that works it
says so in one sentence and leaves the set-up whole: the browser tests are skipped then, all others run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MACOS = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium")


def find() -> str | None:
    """The path of a Chromium that is on this machine, or None."""
    named = os.environ.get("LORAXS_BROWSER")
    candidates = (
        [named] if named else [*map(shutil.which, NAMES), *(path for path in MACOS if Path(path).exists()), _playwrights_own()]
    )
    return next((path for path in candidates if path and Path(path).exists()), None)


def _playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def install() -> str | None:
    """A browser's path, installed first when there is none; None when none could be installed."""
    if found := find():
        return found
    attempts = []
    if shutil.which("apt-get"):
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        attempts.append(
            [
                [*root, "apt-get", "update", "-qq"],
                [*root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
            ]
        )
    attempts.append([[sys.executable, "-m", "playwright", "install", "chromium"]])
    for commands in attempts:
        try:
            if all(
                subprocess.run(command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}).returncode == 0
                for command in commands
            ) and (found := find()):
                return found
        except OSError:
            continue  # no sudo here
    return None


if __name__ == "__main__":
    browser = install()
    if browser is None:
        print(
            "No Chromium could be installed, so the browser tests will be skipped; install chromium and run `make test` again.",
            file=sys.stderr,
        )
