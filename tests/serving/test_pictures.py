"""Pictures by address: what the server downloads, and where it does not let itself be sent."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from starlette.testclient import TestClient

from mmjax.serving import pictures
from mmjax.serving.app import make_app
from mmjax.serving.settings import RequestError, Settings
from tests.decoding.world import png
from tests.serving.conftest import asking, picture

ALLOWED = Settings(name="tiny", fetch_images=True, fetch_hosts=("127.0.0.1",))
PUBLIC = Settings(name="tiny", fetch_images=True)


@pytest.fixture(scope="module")
def site():
    """A web server on this machine; gives its address and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            pages = {"/picture.png": png(1), "/page.html": b"<html>", "/large": b"x" * 5000}
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            found = self.path in pages
            self.send_response(200 if found else 404)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *_):
            """Nothing on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_downloaded_picture_is_the_one_that_was_sent(model, site):
    with TestClient(make_app(model, ALLOWED)) as client:

        def reply(url: str):
            body = asking({"type": "image_url", "image_url": {"url": url}}, "how many ?", logprobs=True)
            return client.post("/v1/chat/completions", json=body).json()

        there = reply(f"{site[0]}/picture.png")["choices"][0]
        assert there == reply(picture(1)["image_url"]["url"])["choices"][0]
        assert "none of PNG" in reply(f"{site[0]}/page.html")["error"]["message"]


def test_redirects_are_followed_where_they_may_go(site):
    assert pictures.load_picture(f"{site[0]}/to/{site[0]}/picture.png", "x", ALLOWED) == png(1)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_private_addresses_are_refused(host):
    with pytest.raises(RequestError, match="is on a private network"):
        pictures.load_picture(f"http://{host}:9/picture.png", "x", PUBLIC)


def test_nothing_is_asked_of_a_private_address(site):
    before = len(site[1])
    with pytest.raises(RequestError, match="private network"):
        pictures.load_picture(f"{site[0]}/picture.png", "x", PUBLIC)
    assert len(site[1]) == before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://localhost:9/x", "localhost is on a private network"),
        ("http://169.254.169.254/latest", "private network"),
        ("file:///etc/passwd", "redirection to url"),
        ("ftp://127.0.0.1/x", "unknown url type|private network"),
    ],
)
def test_redirects_to_elsewhere_are_refused(site, target, message):
    with pytest.raises(RequestError, match=f"(?i){message}"):
        pictures.load_picture(f"{site[0]}/to/{target}", "x", ALLOWED)


def test_what_is_too_large_or_missing_is_refused(site, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PICTURE", 1000)
    with pytest.raises(RequestError, match="larger than 1,000 bytes"):
        pictures.load_picture(f"{site[0]}/large", "x", ALLOWED)
    with pytest.raises(RequestError, match="404"):
        pictures.load_picture(f"{site[0]}/nothing", "x", ALLOWED)
    with pytest.raises(RequestError):
        pictures.load_picture("http://[::1", "x", ALLOWED)


@pytest.mark.parametrize(
    ("number", "public"),
    [("8.8.8.8", True), ("2001:4860:4860::8888", True), ("100.64.0.1", False), ("224.0.0.1", False), ("fe80::1%eth0", False),
     ("::ffff:8.8.8.8", True), ("2002:7f00:1::", False)],
)  # fmt: skip
def test_which_addresses_are_public(number, public):
    assert pictures._is_public(number) is public
