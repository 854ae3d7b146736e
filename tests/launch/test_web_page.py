from __future__ import annotations

import http.client
import threading
from urllib.parse import quote

import pytest

from launch.web_page import MAX_BODY, Server
from mmjax.types.errors import UserError


def answer(question: str, picture: bytes) -> str:
    if not picture:
        raise UserError("the picture: no bytes")
    return f"{question} {len(picture)} ü"


@pytest.fixture
def ask():
    """A request to a running page: (method, path, body, headers) -> (status, text)."""
    with Server(0, answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def request(method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            status, text = reply.status, reply.read().decode()
            connection.close()
            return status, text

        yield request
        server.shutdown()


def test_the_page_and_an_answer(ask):
    status, page = ask("GET", "/")
    assert status == 200 and "<form>" in page
    assert ask("POST", f"/ask?question={quote('How many? ü')}", b"12345") == (200, "How many? ü 5 ü")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/../pyproject.toml", b"", {}, 404),
        ("POST", "/ask", b"x", {}, 400),
        ("POST", "/ask?question=%20", b"x", {}, 400),
        ("POST", f"/ask?question={'x' * 1001}", b"x", {}, 400),
        ("POST", "/ask?question=x", b"", {}, 400),
        ("POST", "/ask?question=x", b"", {"Content-Length": str(MAX_BODY + 1)}, 413),
        ("POST", "/ask?question=x", b"", {"Content-Length": "-1"}, 413),
        ("POST", "/ask?question=x", b"x", {"Host": "evil.example"}, 403),
    ],
)
def test_bad_requests_are_refused(ask, method, path, body, headers, status):
    assert ask(method, path, body, **headers)[0] == status
    assert ask("POST", "/ask?question=a", b"x") == (200, "a 1 ü")


def test_a_port_in_use_is_one_line():
    with Server(0, answer) as first:
        with pytest.raises(UserError, match=f"--port={first.server_port}: Address already in use"):
            Server(first.server_port, answer)
