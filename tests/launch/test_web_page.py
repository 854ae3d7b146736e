from __future__ import annotations

import base64
import http.client
import json
import threading
import urllib.request

import pytest

from launch.web_page import MAX_BODY, MAX_TEXT, Said, Server, example_of, question_of
from mmjax.data.media.image import decode_image
from mmjax.data.templates import remembers
from mmjax.types import Part, Turn
from mmjax.types.errors import UserError
from tests.decoding.world import png

JSON = {"Content-Type": "application/json"}


def answer(said) -> str:
    if said[0].picture == b"":
        raise UserError("the picture: no bytes")
    return " ".join(f"{turn.text} {len(turn.picture or b'')}" for turn in said) + " ü"


def talk(*turns, **more) -> bytes:
    """The body of a request: (role, text, bytes of a picture or None) for each turn."""
    said = [
        {"role": role, "text": text, "picture": picture if picture is None else base64.b64encode(picture).decode(), **more}
        for role, text, picture in turns
    ]
    return json.dumps({"turns": said}).encode()


@pytest.fixture
def ask():
    """A request to a running page: (method, path, body, headers) -> (status, text)."""
    with Server(0, answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def request(method: str, path: str, body: bytes = b"", headers=JSON) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            status, text = reply.status, reply.read().decode()
            connection.close()
            return status, text

        yield request
        server.shutdown()


def test_the_page_and_answers(ask):
    """A second question comes with all that was said before, and may show another picture."""
    status, page = ask("GET", "/")
    assert status == 200 and "<form>" in page
    assert ask("POST", "/ask", talk(("user", "How many? ü", b"12345"))) == (200, "How many? ü 5 ü")
    further = talk(("user", "a", b"12"), ("assistant", "b", None), ("user", "c", None))
    assert ask("POST", "/ask", further) == (200, "a 2 b 0 c 0 ü")


def test_an_answer_is_sent_as_it_comes():
    """The first piece is read while the second is not made yet."""
    read = threading.Event()

    def slow(said):
        yield "first "
        assert read.wait(10)
        yield "second"

    with Server(0, slow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/ask", talk(("user", "a", None)), JSON)
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.read1() == b"first "
            read.set()
            assert reply.read() == b"second"
        server.shutdown()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/../pyproject.toml", b"", JSON, 404),
        ("POST", "/ask", b"x", JSON, 400),
        ("POST", "/ask", b"[" * 100_000, JSON, 400),
        ("POST", "/ask", b'{"turns": []}', JSON, 400),
        ("POST", "/ask", b'{"turns": [{"role": "user", "text": "a", "picture": "?"}]}', JSON, 400),
        ("POST", "/ask", talk(("user", "a", None), more=1), JSON, 400),
        ("POST", "/ask", talk(("user", " ", None)), JSON, 400),
        ("POST", "/ask", talk(("user", "x" * (MAX_TEXT + 1), None)), JSON, 400),
        ("POST", "/ask", talk(("assistant", "a", None)), JSON, 400),
        ("POST", "/ask", talk(("user", "a", None), ("user", "b", None)), JSON, 400),
        ("POST", "/ask", talk(("user", "a", b"")), JSON, 400),
        ("POST", "/ask", b"", JSON | {"Content-Length": str(MAX_BODY + 1)}, 413),
        ("POST", "/ask", b"", JSON | {"Content-Length": "-1"}, 413),
        ("POST", "/ask", talk(("user", "a", None)), {"Content-Type": "text/plain"}, 415),
        ("POST", "/ask", talk(("user", "a", None)), JSON | {"Host": "evil.example"}, 403),
    ],
)
def test_bad_requests_are_refused(ask, method, path, body, headers, status):
    assert ask(method, path, body, headers)[0] == status
    assert ask("POST", "/ask", talk(("user", "a", b"x"))) == (200, "a 1 ü")


def test_a_port_in_use_is_one_line():
    with Server(0, answer) as first:
        with pytest.raises(UserError, match=f"--port={first.server_port}: Address already in use"):
            Server(first.server_port, answer)


def test_pictures_are_parts_of_their_turns():
    said = [Said("user", "a", png(1)), Said("assistant", "b", None), Said("user", "", png(2))]
    example = example_of(said)
    assert example.turns == (
        Turn("user", (Part(medium=0), Part("a"))), Turn("assistant", (Part("b"),)), Turn("user", (Part(medium=1),)),
    )  # fmt: skip
    assert [medium.data.shape for medium in example.media] == [(12, 12, 3)] * 2
    with pytest.raises(UserError, match="picture 1: 3 bytes that are none of PNG"):
        example_of([Said("user", "a", b"123")])


def test_a_single_question_is_about_the_last_picture():
    said = [Said("user", "a", png(1)), Said("assistant", "b", None), Said("user", "c", png(2)), Said("assistant", "d", None)]
    last = question_of([*said, Said("user", "{e}", None)], "Question: {} Answer:")
    (turn,) = last.turns
    assert turn == Turn("user", (Part(medium=0), Part("Question: {e} Answer:")))
    assert (last.media[0].data == decode_image(png(2), name="picture")).all() and len(last.media) == 1
    assert not question_of([Said("user", "a", None)], "{}").media


def test_the_page_says_that_nothing_is_remembered():
    with Server(0, answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as reply:
                return reply.read().decode()

        assert "<p></p>" in page()
        server.note = "<single> questions"
        assert "<p>&lt;single&gt; questions</p>" in page()
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "kept"), [("chat", True), ("dialogue", True), ("llava_v1", True), ("vqa_5", False), (None, False)]
)
def test_templates_that_remember(name, kept):
    assert remembers(name) == kept
