"""A small web page on this machine: upload a picture, ask a question, read the answer. Standard library only."""

from __future__ import annotations

import errno
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from mmjax.types.errors import UserError

PAGE = Path(__file__).with_name("chat.html")
MAX_BODY = 10 * 2**20  # bytes of an uploaded picture
MAX_QUESTION = 1000  # letters


class Server(ThreadingHTTPServer):
    """Answers questions at http://127.0.0.1:port.

    Args:
      port: 0 takes any free one; `server_port` tells which.
      answer: (question, bytes of the picture) -> answer; called from several threads. Its UserErrors are shown.

    Raises:
      UserError: the port is in use.
    """

    daemon_threads = True

    def __init__(self, port: int, answer: Callable[[str, bytes], str]):
        self.answer = answer
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            message = f"--port={port}: {error.strerror}; choose another port, or --port=0 for any free one"
            raise UserError(message) from None


class _Handler(BaseHTTPRequestHandler):
    """GET / gives the page; POST /ask?question=… with a picture as its body gives the answer as text."""

    server: Server
    timeout = 10  # seconds of silence after which a connection is dropped

    def do_GET(self):
        if self.path == "/":
            self._reply(200, PAGE.read_bytes(), "text/html")
        else:
            self._reply(404, b"no such page")

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        question = parse_qs(urlsplit(self.path).query).get("question", [""])[0].strip()
        host = self.headers.get("Host", "").partition(":")[0]
        if host not in ("127.0.0.1", "localhost"):  # a foreign name may have been pointed at this machine
            self._reply(403, b"this page serves its own machine only")
        elif not length.isdigit() or int(length) > MAX_BODY:
            self._reply(413, f"send one picture of at most {MAX_BODY:,} bytes".encode())
        elif not question or len(question) > MAX_QUESTION:
            self._reply(400, f"ask a question of at most {MAX_QUESTION:,} letters".encode())
        else:
            try:
                self._reply(200, self.server.answer(question, self.rfile.read(int(length))).encode())
            except UserError as error:
                self._reply(400, str(error).encode())

    def _reply(self, status: int, body: bytes, kind: str = "text/plain"):
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args):
        """Requests are not logged: the page is for one user."""
