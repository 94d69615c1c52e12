"""The page as a server of this process: Streamlit's application behind the `Door`."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from starlette.middleware import Middleware
from streamlit import config
from streamlit.starlette import App

from app.door import EVERYWHERE, LOCAL_NAMES, Door
from app.own_address import OwnAddress
from app.terminal import say
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.paths import data_dir

PAGE = Path(__file__).resolve().parent / "main.py"
PAGES = ("model", "spectra", "plan", "cost", "compare", "adapters")  # as `app.main` calls them in addresses
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}")


def serve(host: str, port: int, *, also: Sequence[str] = (), token: str | None, open_browser: bool) -> None:
    """Serves the page until the process is told to stop (Ctrl-C, SIGTERM).

    host: address to listen on; also: further names it is served under. port: 0 takes a free one. token: see `Door`.
    """
    names = {*LOCAL_NAMES, *also} | ({socket.gethostname()} if host in EVERYWHERE else {host})

    @asynccontextmanager
    async def announced(_: App) -> AsyncIterator[None]:
        shown = "localhost" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{config.get_option('server.port')}/" + (f"?token={quote(token)}" if token else "")
        print(f"LoRA-XS Workbench: {address}", flush=True)
        if open_browser:
            # In a thread, as some browsers return only when they are closed; the server listens already and answers when it is up.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        yield

    app = App(
        PAGE,
        lifespan=announced,
        middleware=[
            Middleware(Door, names=names, any_address=host in EVERYWHERE, token=token),
            Middleware(OwnAddress, pages=PAGES),
        ],
    )
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno >= logging.WARNING)
    sys.argv = [str(PAGE)]  # beside which Streamlit looks for its settings
    app.run(
        config={
            "server.address": host,
            "server.port": port,
            "server.headless": True,  # the address that Streamlit would open has no token
            "server.allowedHosts": ["*"] if host in EVERYWHERE else sorted(names),
            # Settings in the folder where the command was started, or of the user for other pages, do not open the door.
            "server.enableCORS": True,
            "server.enableXsrfProtection": True,
            "server.enableStaticServing": False,
            "server.fileWatcherType": "none",
            "server.showEmailPrompt": False,
            "browser.gatherUsageStats": False,
            "logger.hideWelcomeMessage": True,
        }
    )


def kept_token() -> str:
    """The token of this installation: ``LORAXS_TOKEN``, or what the user's data folder keeps for the user alone; made when there is none.

    It is kept so that an open tab and a bookmark work after a restart; removing the file makes a new one. Raises SettingsError for a
    ``LORAXS_TOKEN`` that is none.
    """
    if given := os.environ.get("LORAXS_TOKEN"):
        if not TOKEN.fullmatch(given):
            raise SettingsError("LORAXS_TOKEN has to be 16 to 200 letters, digits, - or _.")
        return given
    made = secrets.token_urlsafe(24)
    try:
        file = data_dir() / "page-token"
        known = _of_the_user(file)
        if known is None:
            file.unlink(missing_ok=True)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as new:
                new.write(made)
        return known or made
    except FileExistsError:  # another one was started at the same moment
        return _of_the_user(file) or made
    except (OSError, RunError):
        say("loraxs: the data folder cannot be written, so the token in this address is for this time only.")
        return made


def _of_the_user(file: Path) -> str | None:
    """The token in `file`; None where there is none, or where others could read or have written it."""
    try:
        status = os.stat(file)
        known = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    private = os.name == "nt" or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
    return known if private and TOKEN.fullmatch(known) else None
