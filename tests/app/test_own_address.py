"""The page tells Streamlit's program where its server is; nothing else that is served is touched."""

from __future__ import annotations

import asyncio
import re

import pytest

from app.own_address import OwnAddress
from app.server import PAGES

HTML = b"<html><head><title>x</title></head></html>"


def served(path: str, *, kind: bytes = b"text/html; charset=utf-8", body: bytes = HTML) -> tuple[dict[str, str], bytes]:
    """Headers and body of what comes through for a GET of `path`, in two pieces."""
    sent = []

    async def inner(scope, receive, send):
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"etag", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"accept-encoding", b"gzip")]}
    asyncio.run(OwnAddress(inner, pages=PAGES)(scope, None, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return headers, b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize("path", ["/", "/plan", "/behind/a/proxy/cost", "/spectra/"])
def test_pages_say_where_their_server_is(path):
    headers, body = served(path)
    assert body.startswith(b"<html><head><script>window.__streamlit")
    assert body.count(b"history.pushState = ") == 1
    assert int(headers["content-length"]) == len(body)
    assert "etag" not in headers  # of a file without the script
    ends = re.search(rb"replace\(/(.*?)/, '/'\)", body)[1].decode().replace("\\/", "/")
    assert re.sub(ends, "/", path) == {"/behind/a/proxy/cost": "/behind/a/proxy/"}.get(path, "/")


@pytest.mark.parametrize("path", ["/static/js/index.js", "/_stcore/health", "/media/report.html"])
def test_the_rest_is_as_it_was(path):
    assert served(path)[1] == HTML


def test_what_is_no_html_is_as_it_was():
    assert served("/plan", kind=b"text/plain", body=b"<head> in a text")[1] == b"<head> in a text"
