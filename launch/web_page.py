"""A small web page on this machine: show pictures, ask, read the answers, ask again. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import errno
import html
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.data.media.image import decode_image
from mmjax.types import Example, Medium, Part, Turn, UserError, ask

PAGE = Path(__file__).with_name("chat.html")
MAX_BODY = 32 * 2**20  # bytes of a conversation with its pictures
MAX_TEXT = 10_000  # letters of a turn


class Said(NamedTuple):
    """What one side says at once.

    Args:
      role: "user" or "assistant".
      text: may be empty where there is a picture.
      picture: the bytes of its file; None = there is none.
    """

    role: str
    text: str
    picture: bytes | None


def example_of(said: Sequence[Said]) -> Example:
    """A conversation of the page; pictures come before the words of their turn."""
    shown = [turn.picture for turn in said if turn.picture is not None]
    media = tuple(Medium("image", decode_image(data, name=f"picture {number + 1}")) for number, data in enumerate(shown))
    numbers = iter(range(len(media)))
    turns = []
    for turn in said:
        picture = (Part(medium=next(numbers)),) if turn.picture is not None else ()
        turns.append(Turn(turn.role, (*picture, *((Part(turn.text),) if turn.text else ()))))  # pyright: ignore[reportArgumentType]
    return Example("the page", media=media, turns=tuple(turns))


def question_of(said: Sequence[Said], prompt: str) -> Example:
    """The last question of a conversation about the last picture; {} in the prompt stands for its words."""
    shown = [turn for turn in said if turn.picture is not None]
    return ask(prompt.replace("{}", said[-1].text), *example_of(shown[-1:]).media)


class Server(ThreadingHTTPServer):
    """Answers questions at http://127.0.0.1:port.

    Args:
      port: 0 takes any free one; `server_port` tells which.
      answer: conversation, which a question ends -> pieces of the answer, shown as they come; called from several threads.
        Its UserErrors before the first piece are shown.

    `note`, which may be set later, is shown on top of the page.

    Raises:
      UserError: the port is in use.
    """

    daemon_threads = True
    note = ""

    def __init__(self, port: int, answer: Callable[[Sequence[Said]], Iterable[str]]):
        self.answer = answer
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            message = f"--port={port}: {error.strerror}; choose another port, or --port=0 for any free one"
            raise UserError(message) from None


def read_conversation(body: bytes) -> list[Said]:
    """The turns of a request: {"turns": [{"role": …, "text": …, "picture": base64 of a file, or null}, …]}.

    Raises:
      UserError: anything else.
    """
    try:
        said = [_said(**turn) for turn in json.loads(body)["turns"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"expected turns with role, text and picture, got something else ({error})") from None
    roles = [turn.role for turn in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2) + ["user"]:
        raise UserError("expected user and assistant in turn, the user last")
    if any(len(turn.text) > MAX_TEXT or not (turn.text or turn.picture) for turn in said if turn.role == "user"):
        raise UserError(f"ask a question of at most {MAX_TEXT:,} letters")
    return said


def _said(role: str, text: str, picture: Any = None) -> Said:
    return Said(role, str(text).strip(), None if picture is None else base64.b64decode(picture, validate=True))


class _Handler(BaseHTTPRequestHandler):
    """GET / gives the page; POST /ask with a conversation as its body streams the answer as text."""

    server: Server
    timeout = 10  # seconds of silence after which a connection is dropped

    def do_GET(self):
        if self.path == "/":
            self._reply(200, PAGE.read_text().replace("{note}", html.escape(self.server.note)).encode(), "text/html")
        else:
            self._reply(404, b"no such page")

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        host = self.headers.get("Host", "").partition(":")[0]
        if host not in ("127.0.0.1", "localhost"):  # a foreign name may have been pointed at this machine
            self._reply(403, b"this page serves its own machine only")
        elif self.headers.get("Content-Type", "").partition(";")[0] != "application/json":  # no other page's form sends this
            self._reply(415, b"send application/json")
        elif not length.isdigit() or int(length) > MAX_BODY:
            self._reply(413, f"send a conversation of at most {MAX_BODY:,} bytes".encode())
        else:
            try:
                pieces = iter(self.server.answer(read_conversation(self.rfile.read(int(length)))))
                first = next(pieces, "")
            except UserError as error:
                self._reply(400, str(error).encode())
            else:
                self._stream(itertools.chain([first], pieces))

    def _stream(self, pieces: Iterable[str]):
        """Sends each piece at once; the end of the connection ends the answer."""
        self._begin(200, "text/plain")
        with contextlib.suppress(ConnectionError):  # the page was closed: nobody reads on
            for piece in pieces:
                self.wfile.write(piece.encode())

    def _reply(self, status: int, body: bytes, kind: str = "text/plain"):
        self._begin(status, kind, length=len(body))
        self.wfile.write(body)

    def _begin(self, status: int, kind: str, length: int | None = None):
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args):
        """Requests are not logged: the page is for one user."""
