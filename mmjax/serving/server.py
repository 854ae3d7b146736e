"""The socket and the HTTP server. Nothing here imports JAX, so that a port in use is told at once."""

from __future__ import annotations

import os
import socket
from typing import Any

from mmjax.types.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost")
GRACE = 5  # seconds that answers under way get when the server ends


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address, before anything slow begins.

    Args:
      host: name or number; port: 0 takes any free one.

    Raises:
      UserError: the address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror or error  # names have codes below 0
        raise UserError(f"--host={host} --port={port}: {reason}; choose another port, or --port=0 for any free one") from None


def make_server(app: Any, listener: socket.socket) -> Any:
    """A uvicorn server; its `run(sockets=[listener])` ends with Ctrl-C or SIGTERM, a few seconds later."""
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if listener.getsockname()[0] in LOOPBACK:  # a foreign name may have been pointed at this machine
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False))
