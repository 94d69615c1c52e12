"""The page's door: who is let in, and what the browser is told to keep out.

Whoever reaches the page can read and write what its user can, so the door asks three things of every request and every websocket,
before Streamlit sees it:

- **Host**: one of the names that the user allowed. A foreign name that was made to point at this machine (DNS rebinding) would
  otherwise be a page of its own origin to the browser, with all rights on this one.
- **Origin**, where the browser names one: the page's own. Another page on this machine (`http://localhost:9999`) is another origin.
- **The token** of this installation, once: in the address that `loraxs app` prints, from there in a cookie, so that reloads and links
  work without it.

Streamlit's own `server.allowedHosts` asks the first of websockets only, and takes every port of localhost as its own origin.
Knows nothing of the pages.
"""

from __future__ import annotations

import hmac
import html
import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})
COOKIE_SECONDS = 30 * 24 * 3600
# Streamlit's own program and its answer "ok": the same for everyone, and fetched by the browser without cookies in part.
OPEN_TO_ALL = ("/static/", "/_stcore/health", "/favicon", "/manifest.json")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Streamlit's program starts from a script in its HTML and styles itself; plotly and the tables draw from blobs. Nothing may be asked
# of another machine: not even an image that somebody wrote into a name.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self' ws://{host} wss://{host}; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)

ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>LoRA-XS Workbench</title>
<style>:root {{color-scheme: light dark}} body {{font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto; padding: 0 1rem}}
input, button {{font: inherit; padding: .4rem .6rem}}</style>
<h1>This page asks for its token</h1>
<p>Open the address that <code>loraxs app</code> printed where it was started, or paste the token at its end here.</p>
<form method="get">{hidden}<label>Token <input name="token" autocomplete="off" autofocus required></label> <button>Open</button></form>
"""


class Door:
    """ASGI middleware around the page.

    names: host names it is served under, without ports. any_address: also under any IP address, which no foreign name can imitate;
    for a server that listens on all of the machine's. token: what the address has to carry once, or None for no such question.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str], any_address: bool = False, token: str | None = None):
        self.app = app
        self.names = frozenset(name.lower().strip("[]").rstrip(".") for name in names)
        self.any_address = any_address
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        if scope["type"] == "websocket":
            if refused is None:
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403
            return
        guarded = _with_headers(send, POLICY.format(host=headers.get("host", "") if refused is None else "localhost"))
        await (refused or self.app)(scope, receive, guarded)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer that takes the page's place, or None where the request is let in."""
        hosts = headers.getlist("host")
        place = _place(hosts[0]) if len(hosts) == 1 else None
        if place is None or not self._served(place[0]):
            return PlainTextResponse(
                f"The page is not served under the name {', '.join(hosts)[:200]!r}. If it is yours, start it with "
                "loraxs app --allow-host NAME.\n",
                status_code=421,
            )
        for origin in headers.getlist("origin"):
            if not _same(origin, place):
                return PlainTextResponse("Another page may not call this one.\n", status_code=403)
        if self.token is None or scope["path"].startswith(OPEN_TO_ALL):
            return None
        return self._unknown(scope, headers, f"loraxs-{place[1] or 80}")

    def _served(self, name: str) -> bool:
        return name in self.names or (self.any_address and _is_address(name))

    def _unknown(self, scope: Scope, headers: Headers, cookie: str) -> Response | None:
        """What one without the cookie is told; who brings the token in the address gets the cookie and is sent on without it."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in query if key == "token"]
        others = [(key, value) for key, value in query if key != "token"]
        known = self._is_token(cookie_parser("; ".join(headers.getlist("cookie"))).get(cookie, ""))
        if scope["type"] == "websocket":
            return None if known else PlainTextResponse("", status_code=403)
        right = any(map(self._is_token, given))
        if scope["method"] == "GET" and (right or (known and given)):
            # One slash in front, or a path of two would lead to another machine.
            path = "/" + quote(scope["path"].lstrip("/\\"))
            onward = RedirectResponse(path + (f"?{urlencode(others)}" if others else ""), status_code=303)
            onward.headers["Cache-Control"] = "no-store"
            if right:
                onward.set_cookie(cookie, self.token, max_age=COOKIE_SECONDS, httponly=True, samesite="lax")
            return onward
        if known:
            return None
        hidden = "".join(
            f'<input type="hidden" name="{html.escape(key)}" value="{html.escape(value)}">' for key, value in others
        )
        return HTMLResponse(ASK.format(hidden=hidden), status_code=403, headers={"Cache-Control": "no-store"})

    def _is_token(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _with_headers(send: Send, policy: str) -> Send:
    """`send`, which adds what keeps frames, foreign content and guessed content types out."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS | {"Content-Security-Policy": policy})
            # What Streamlit grants other origins (every port of localhost, the hosts of its makers) does not hold here.
            for name in ("access-control-allow-origin", "access-control-allow-credentials"):
                if name in headers:
                    del headers[name]
        await send(message)

    return guarded


def _place(netloc: str) -> tuple[str, int | None] | None:
    """Host name and port of ``name:port``; None where it is anything but that."""
    try:
        parts = urlsplit(f"//{netloc}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or "@" in netloc or parts.path or parts.query or parts.fragment or netloc != netloc.strip():
        return None
    return name.lower().rstrip("."), port


def _same(origin: str, place: tuple[str, int | None]) -> bool:
    """Whether an Origin header names the place that the request went to. The scheme may differ: a proxy may speak TLS for the page."""
    scheme, _, netloc = origin.partition("://")
    usual = {"http": 80, "https": 443}.get(scheme)
    other = _place(netloc) if usual else None
    return other is not None and (other[0], other[1] or usual) == (place[0], place[1] or usual)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
