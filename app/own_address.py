"""Tells Streamlit's program in the browser where its server is, so that it does not look for it below a page's address first, and which
changes of an address are steps for the back button (``assets/history.js``).

Opened at ``/plan``, that program asks for ``/plan/_stcore/health`` and ``/plan/_stcore/host-config`` before it asks at the root, and the
browser writes both refusals into its console as errors. It asks nowhere but where it is told, so the page says it: the address without
the name of a page at its end, whatever a proxy puts in front of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPT = (
    "<script>window.__streamlit = Object.assign({{BACKEND_BASE_URL: new URL("
    "location.pathname.replace(/\\/({pages})\\/?$/, '/'), location.origin).href}}, window.__streamlit)</script>"
)
HISTORY = f"<script>{(Path(__file__).parent / 'assets' / 'history.js').read_text(encoding='utf-8')}</script>"
# What would make the answer one without a body, or one that nothing can be written into.
UNWANTED = (b"accept-encoding", b"if-none-match", b"if-modified-since", b"range")


class OwnAddress:
    """ASGI middleware around the page. pages: the names that stand at the end of its addresses."""

    def __init__(self, app: ASGIApp, *, pages: Iterable[str]):
        self.app = app
        self.pages = frozenset(pages)
        self.script = SCRIPT.format(pages="|".join(sorted(self.pages))).encode() + HISTORY.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = scope["path"].rstrip("/").rsplit("/", 1)[-1] if scope["type"] == "http" else None
        if last is None or scope["method"] != "GET" or not (last in self.pages or scope["path"].endswith("/")):
            await self.app(scope, receive, send)
            return
        asked = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name.lower() not in UNWANTED]}
        started: list[Message] = []
        body = bytearray()

        async def with_script(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            start = started[0]
            headers = MutableHeaders(scope=start)
            whole = bytes(body)
            if headers.get("content-type", "").startswith("text/html"):
                whole = whole.replace(b"<head>", b"<head>" + self.script, 1)
                headers["content-length"] = str(len(whole))
                for name in ("etag", "last-modified"):
                    if name in headers:
                        del headers[name]
            await send(start)
            await send({"type": "http.response.body", "body": whole})

        await self.app(asked, receive, with_script)
