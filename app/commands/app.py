"""`loraxs app`: opens the page."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.terminal import say


def run(
    port: Annotated[int, typer.Option(help="Port on localhost; another one is taken when it is busy.")] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Anything but localhost lets others on the network in.")
    ] = "localhost",
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser window.")] = False,
) -> None:
    """Open the page in the browser (Streamlit, on localhost only)."""
    if host not in ("localhost", "127.0.0.1", "::1"):
        say(f"loraxs: listening on {host}: everyone who reaches this address can read the models on this machine.")
    page = Path(__file__).resolve().parents[1] / "main.py"
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(page),
        f"--server.address={host}",
        f"--server.port={_free(host, port)}",
    ]
    command += [
        f"--server.headless={str(headless or not _has_display()).lower()}",
        "--browser.gatherUsageStats=false",
        "--server.showEmailPrompt=false",
    ]
    raise typer.Exit(subprocess.call(command, cwd=page.parents[1]))


def _free(host: str, port: int) -> int:
    """`port`, or the next one that nobody listens on."""
    for candidate in range(port, port + 50):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    return port


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
