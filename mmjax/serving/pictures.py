"""Pictures of requests by their addresses: data: always, http(s): where the operator lets the server download.

A server that downloads what strangers name could be sent to machines that only it can reach. So names are resolved here, every
address must be public (or of a host that the operator lists), and the connection goes to the very address that was checked;
each redirect is checked alike.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import time
import urllib.request
from collections.abc import Collection
from typing import Any

from mmjax.serving.settings import RequestError, Settings

MAX_PICTURE = 32 * 2**20  # bytes
PIECE = 2**16  # bytes read between two looks at the clock
SECONDS = 10  # for each answer from the network, and for the whole picture


def load_picture(address: str, where: str, settings: Settings) -> bytes:
    """The bytes of a picture's file.

    Args:
      address: as a client sent it.
      where: what errors call it.
      settings: of the server.

    Raises:
      RequestError: an address of another kind, or one that gives no bytes.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "data":
        form, _, data = rest.partition(",")
        if not form.endswith(";base64"):
            raise RequestError(f"{where}: a data: address must be base64, data:image/png;base64,…", where)
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"{where}: no base64 ({error})", where) from None
    if scheme not in ("http", "https"):
        raise RequestError(f"{where}: a picture's address must begin with data:", where)
    if not settings.fetch_images:
        raise RequestError(
            f"{where}: this server downloads no pictures; send a data:image/…;base64,… address (or start it with "
            "--fetch_images)", where
        )  # fmt: skip
    try:
        return _download(address, settings.fetch_hosts)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RequestError(f"{where}: {error}", where) from None


def _download(address: str, hosts: Collection[str]) -> bytes:
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Handler(hosts),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),  # a redirect to ftp: and the like
    ):
        opener.add_handler(handler)
    until, data = time.monotonic() + SECONDS, bytearray()
    with opener.open(address, timeout=SECONDS) as reply:
        while piece := reply.read1(PIECE):
            data += piece
            if len(data) > MAX_PICTURE:
                raise ValueError(f"larger than {MAX_PICTURE:,} bytes")
            if time.monotonic() > until:
                raise TimeoutError(f"not there after {SECONDS} seconds")
    return bytes(data)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens http: and https: through connections that look where they go."""

    def __init__(self, hosts: Collection[str]):
        super().__init__()
        self._hosts = hosts

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request, hosts=self._hosts)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, request, hosts=self._hosts)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


class _Connection(http.client.HTTPConnection):
    """A connection to a public address, or to one of `hosts`."""

    def __init__(self, host: str, *, hosts: Collection[str], **how: Any):
        super().__init__(host, **how)
        self._hosts = hosts

    def connect(self) -> None:
        found = [str(entry[-1][0]) for entry in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)]
        if self.host not in self._hosts and not all(map(_is_public, found)):
            raise ValueError(f"{self.host} is on a private network; --fetch_hosts={self.host} would allow it")
        for number, address in enumerate(found):
            try:
                self.sock = socket.create_connection((address, self.port), self.timeout)
                return
            except OSError:
                if number == len(found) - 1:
                    raise


class _SecureConnection(_Connection):
    """The same, encrypted, with a host that proves its name."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _is_public(number: str) -> bool:
    """Whether an address belongs to the public internet, also where IPv6 wraps one of IPv4."""
    address = ipaddress.ip_address(number.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return address.is_global and not address.is_multicast
