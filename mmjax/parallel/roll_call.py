"""The roll call: before JAX connects the processes of a run, process 0 hears from each of them, and names who is missing.

JAX's own start waits in silence and then aborts. So process 0 first listens on the coordinator's port itself: each process
sends one line of JSON about itself and is told "go", or what is wrong. The port is then free for JAX.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from typing import Any

from mmjax.types.errors import UserError

POLL_SECONDS = 0.5
LINE_SECONDS, LINE_BYTES = 5.0, 4096
GO = "go"


def answer(coordinator: str, count: int, index: int, remedy: str, *, missing_after: float, give_up_after: float) -> None:
    """Returns when all processes have come.

    Args:
      coordinator: "HOST:PORT" of process 0.
      count, index: how many processes, and which one this is.
      remedy: how to start those that are missing.
      missing_after: seconds after which they are named on stderr, and again after as many.
      give_up_after: seconds to wait at all.

    Raises:
      UserError: some never came, two have the same index, or they do not agree on their number.
    """
    patience = Patience(missing_after, give_up_after)
    host, _, port = coordinator.rpartition(":")
    me = {"index": index, "count": count, "host": socket.gethostname(), "pid": os.getpid()}
    if index == 0:
        _call(int(port), me, remedy, patience)
    else:
        _report(host.strip("[]"), int(port), me, remedy, patience)


class Patience:
    """When it is time to complain, and when to give up.

    Args:
      missing_after, give_up_after: see `answer`.
    """

    def __init__(self, missing_after: float, give_up_after: float):
        self.began = time.monotonic()
        self.missing_after, self.give_up_after = missing_after, give_up_after
        self._next = missing_after

    def waited(self) -> float:
        return time.monotonic() - self.began

    def over(self) -> bool:
        return self.waited() > self.give_up_after

    def complain(self, message: str) -> None:
        """Prints the message if it is time to."""
        if self.waited() > self._next:
            self._next += self.missing_after
            print(f"waited {self.waited():.0f} s: {message}", file=sys.stderr, flush=True)


def _call(port: int, me: dict[str, Any], remedy: str, patience: Patience) -> None:
    """Process 0: listens until everybody is there."""
    there: dict[int, tuple[socket.socket, dict[str, Any]]] = {}
    with _listen(port) as server:
        while True:
            there = {index: entry for index, entry in there.items() if not _gone(entry[0])}
            missing = sorted(set(range(1, me["count"])) - there.keys())
            if not missing:
                return _tell([link for link, _ in there.values()], GO)
            names = ", ".join(map(str, missing))
            problem = f"process {names} of 0 … {me['count'] - 1} has not come; {remedy}"
            if patience.over():
                problem = f"{problem} (given up after {patience.give_up_after:g} s)"
                _tell([link for link, _ in there.values()], problem)
                raise UserError(problem)
            patience.complain(problem)
            if select.select([server], [], [], POLL_SECONDS)[0]:
                _admit(server.accept()[0], me, there)


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): a run before this one may still be ending; wait for "
            "it, or give another port (--coordinator, or JAX_COORDINATOR_PORT)"
        ) from None


def _admit(link: socket.socket, me: dict[str, Any], there: dict[int, tuple[socket.socket, dict[str, Any]]]) -> None:
    """Enters a process that has called, or tells it why not."""
    who = _read(link)
    if not isinstance(who, dict) or who.keys() != me.keys():
        link.close()  # whoever this is, it is no process of ours
        return
    taken = {0: me, **{index: other for index, (_, other) in there.items()}}.get(who["index"])
    if taken is not None:
        problem = f"process {who['index']} is there already, on {taken['host']} (pid {taken['pid']}): two have the same index"
        _tell([link], f"{problem}; give each its own --process_id")
    elif who["count"] != me["count"]:
        problem = f"process {who['index']} on {who['host']} expects {who['count']} processes, process 0 {me['count']}"
        _tell([link], f"{problem}; give all the same --num_processes")
    else:
        there[who["index"]] = (link, who)


def _report(host: str, port: int, me: dict[str, Any], remedy: str, patience: Patience) -> None:
    """Any other process: calls process 0 until it answers."""
    silent = f"process 0 does not answer at {host}:{port}; it must run on that host, and its port be reachable; {remedy}"
    while not patience.over():
        patience.complain(silent)
        try:
            with socket.create_connection((host, port), timeout=LINE_SECONDS) as link:
                link.sendall(json.dumps(me).encode() + b"\n")
                reply = _wait(link, patience)
        except OSError:  # not there yet, or gone again
            reply = None
        if reply == GO:
            return
        if isinstance(reply, str):
            raise UserError(reply)
        time.sleep(POLL_SECONDS)
    raise UserError(f"{silent} (given up after {patience.give_up_after:g} s)")


def _wait(link: socket.socket, patience: Patience) -> Any:
    """Process 0's reply, which comes when all are there; it names the missing ones meanwhile."""
    while not patience.over():
        if select.select([link], [], [], POLL_SECONDS)[0]:
            return _read(link)
    return _read(link)  # it gives up at the same time, and says of whom


def _tell(links: list[socket.socket], text: str) -> None:
    for link in links:
        try:
            link.sendall(json.dumps(text).encode() + b"\n")
        except OSError:
            continue  # that one has just died: JAX's start will notice
        finally:
            link.close()


def _read(link: socket.socket) -> Any:
    """One line of JSON; None if none comes."""
    link.settimeout(LINE_SECONDS)
    try:
        with link.makefile("rb") as file:
            return json.loads(file.readline(LINE_BYTES))
    except (OSError, ValueError):
        return None


def _gone(link: socket.socket) -> bool:
    """Whether the other end has closed: nobody sends more than one line."""
    return bool(select.select([link], [], [], 0)[0])
