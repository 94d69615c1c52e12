"""The page's door, by raw sockets against the real server: hosts, origins, the token, headers, and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Page:
    """A running `loraxs app`: its port, the token in the address it printed, its process."""

    def __init__(self, folder: Path, *options: str):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "app", "--headless", "--port", str(_free_port()), *options],
            cwd=folder,
            env=os.environ
            | {"LORAXS_DATA": str(folder / "data"), "LORAXS_CACHE": str(folder / "cache"), "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=open(folder / "log", "wb"),  # noqa: SIM115 (the process has it)
            text=True,
        )
        self.said = self.process.stdout.readline()
        found = re.search(r"http://\S+?:(\d+)/(?:\?token=(\S+))?$", self.said)
        assert found, (self.said, (folder / "log").read_text())
        self.port, self.token = int(found[1]), found[2]
        self.host = f"localhost:{self.port}"
        self.cookie = f"Cookie: loraxs-{self.port}={self.token}\r\n" if self.token else ""
        deadline = time.monotonic() + 60
        while not self.ask("/_stcore/health").startswith("HTTP/1.1 200"):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ask(self, path: str = "/", *, host: str | None = None, more: str = "", method: str = "GET") -> str:
        """The head of the answer to a request for `path` as `host`, with `more` header lines."""
        with socket.create_connection(("localhost", self.port), 20) as line:
            named = f"Host: {self.host if host is None else host}\r\n"
            length = "Content-Length: 0\r\n" if method == "POST" else ""
            line.sendall(f"{method} {path} HTTP/1.1\r\n{named}{length}{more}\r\n".encode())
            answer = b""
            while b"\r\n\r\n" not in answer and (piece := line.recv(65536)):
                answer += piece
        return answer.decode("latin-1")

    def websocket(self, *, host: str | None = None, origin: str | None = None, more: str = "") -> int:
        """The status a websocket handshake with the page's stream is answered with; 101 is in."""
        said = HANDSHAKE + (f"Origin: {origin}\r\n" if origin else "") + more
        return int(self.ask("/_stcore/stream", host=host, more=said).split()[1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(folder: Path, *options: str):
    page = Page(folder, *options)
    try:
        yield page
    finally:
        page.process.kill()
        page.process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with running(tmp_path_factory.mktemp("door")) as started:
        yield started


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    """Without a token, so that hosts and origins alone decide."""
    with running(tmp_path_factory.mktemp("open"), "--no-token", "--allow-host", "box.example") as started:
        yield started


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost.evil.example:{port}", "", "localhost@evil.example"]
)
def test_a_foreign_host_gets_nothing(open_page, host):
    host = host.format(port=open_page.port)
    for path in ("/", "/?model=/etc", "/_stcore/health", "/_stcore/host-config", "/static/"):
        assert open_page.ask(path, host=host).split()[1] in ("400", "421"), path
    assert open_page.websocket(host=host, origin=f"http://{host}") in (400, 403)
    assert open_page.websocket(host=host) in (400, 403)


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "box.example", "BOX.example."])
def test_allowed_hosts_are_served(open_page, host):
    host = host.format(port=open_page.port)
    assert open_page.ask("/", host=host).startswith("HTTP/1.1 200")
    assert open_page.websocket(host=host, origin=f"http://{host}") == 101


@pytest.mark.parametrize(
    "origin", ["http://localhost:9999", "http://127.0.0.1:{port}", "http://evil.example", "null", "file://", "http://localhost"]
)
def test_another_origin_gets_nothing(open_page, origin):
    origin = origin.format(port=open_page.port)
    assert open_page.websocket(origin=origin) == 403
    assert open_page.ask("/_stcore/host-config", more=f"Origin: {origin}\r\n").startswith("HTTP/1.1 403")
    assert open_page.ask("/_stcore/upload_file/a/b", more=f"Origin: {origin}\r\n", method="POST").startswith("HTTP/1.1 403")


def test_two_hosts_are_one_too_many(open_page):
    assert open_page.ask("/", more="Host: evil.example\r\n").split()[1] in ("400", "421")


def test_a_page_behind_a_proxy_that_speaks_tls_is_its_own_origin(open_page):
    assert open_page.websocket(host="box.example", origin="https://box.example") == 101
    assert open_page.websocket(host="box.example", origin="https://box.example:8443") == 403


@pytest.mark.parametrize("path", ["/", "/plan", "/_stcore/host-config", "/_stcore/health", "/static/none.js"])
def test_headers_keep_frames_and_foreign_content_out(open_page, path):
    head = open_page.ask(path).lower()
    assert "x-frame-options: deny" in head
    assert "x-content-type-options: nosniff" in head
    assert "frame-ancestors 'none'" in head
    assert "img-src 'self' data: blob:;" in head  # an image in a name is asked of nobody
    assert "access-control-allow-origin" not in head


def test_without_the_token_nothing_is_told(page):
    for path in ("/", "/plan?model=minilm", "/media/x.csv", "/_stcore/host-config"):
        assert page.ask(path).startswith("HTTP/1.1 403"), path
    assert page.websocket(origin=f"http://{page.host}") == 403
    wrong = f"Cookie: loraxs-{page.port}={'x' * 32}\r\n"
    assert page.websocket(origin=f"http://{page.host}", more=wrong) == 403
    assert page.ask("/?token=wrong").startswith("HTTP/1.1 403")
    assert page.ask("/", more=wrong).startswith("HTTP/1.1 403")


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(page):
    head = page.ask(f"/plan?model=a%20b&token={page.token}&plan=x")
    assert head.startswith("HTTP/1.1 303")
    assert "location: /plan?model=a+b&plan=x\r\n" in head
    cookie = re.search(r"set-cookie: (.*)\r\n", head)[1]
    assert cookie.startswith(page.cookie.removeprefix("Cookie: ").strip())
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert page.ask("/plan?model=a", more=page.cookie).startswith("HTTP/1.1 200")  # a reload, a deep link
    assert page.websocket(origin=f"http://{page.host}", more=page.cookie) == 101


def test_the_token_leads_to_no_other_machine(page):
    location = re.search(r"location: (.*)\r\n", page.ask(f"//evil.example/x?token={page.token}"))[1]
    assert location == "/evil.example/x"
    head = page.ask(f"/%0d%0aSet-Cookie:%20a=b?token={page.token}")
    assert "set-cookie: a=b" not in head.lower()


def test_the_token_is_the_users_alone_and_stays(page, monkeypatch):
    from app.server import kept_token

    kept = page.folder / "data" / "page-token"
    assert kept.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("LORAXS_DATA", str(page.folder / "data"))
    monkeypatch.delenv("LORAXS_TOKEN", raising=False)
    assert kept_token() == page.token == kept.read_text()


@pytest.mark.parametrize("spoilt", ["short", "", "x" * 300, "naïve and long enough to be one", None])
def test_a_token_that_others_can_read_or_that_is_none_is_made_anew(own_folders, monkeypatch, spoilt):
    from app.server import kept_token
    from loraxs_core.paths import data_dir

    monkeypatch.delenv("LORAXS_TOKEN", raising=False)
    first, file = kept_token(), data_dir() / "page-token"
    file.chmod(0o644 if spoilt is None else 0o600)
    if spoilt is not None:
        file.write_text(spoilt)
    second = kept_token()
    assert second not in (first, spoilt)
    assert kept_token() == second


def test_any_address_of_a_machine_that_listens_everywhere(tmp_path):
    """A name of one's own can be made to point here, an address cannot: it is what the person typed."""
    with running(tmp_path, "--no-token", "--host", "0.0.0.0") as started:
        assert started.websocket(host="192.168.7.7:8501", origin="http://192.168.7.7:8501") == 101
        assert started.websocket(host="evil.example", origin="http://evil.example") == 403


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_sigterm_ends_the_server(tmp_path):
    with running(tmp_path) as started, socket.create_connection(("localhost", started.port)) as line:
        line.sendall(f"GET /_stcore/stream HTTP/1.1\r\nHost: {started.host}\r\n{started.cookie}{HANDSHAKE}\r\n".encode())
        assert b" 101 " in line.recv(65536)  # with a session open
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(20)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("localhost", started.port), 2)
