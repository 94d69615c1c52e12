"""`loraxs app`: opens the page."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from app.terminal import say

LOCAL = ("localhost", "127.0.0.1", "::1")


def run(
    port: Annotated[
        int, typer.Option(help="Port on localhost; another one is taken when it is busy.", min=0, max=65535)
    ] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Anything but localhost lets others on the network knock.")
    ] = "localhost",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name the page is reached under, such as a proxy's; may be given several times."),
    ] = None,
    token: Annotated[
        bool,
        typer.Option("--token/--no-token", help="Ask for the token in the printed address; without, whoever reaches it is in."),
    ] = True,
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser window.")] = False,
) -> None:
    """Open the page in the browser (Streamlit, on localhost only). Stops on Ctrl-C and SIGTERM."""
    from app.server import kept_token, serve

    secret = kept_token() if token else None
    if host not in LOCAL:
        known = "everyone with the token" if token else "everyone who reaches this address"
        say(f"loraxs: listening on {host}: {known} can read and write what you can on this machine.")
    serve(
        host,
        _free(host, port),
        also=tuple(allow_host or ()),
        token=secret,
        open_browser=not headless and _has_display(),
    )


def _free(host: str, port: int) -> int:
    """`port`, or the next one that nobody listens on; 0 stays 0."""
    for candidate in range(port, min(port + 50, 65536)) if port else ():
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
