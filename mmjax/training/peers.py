"""How the other processes of a run are: each tells it through the key-value store of JAX's coordinator, and all read it.

JAX's own heartbeats flow on while a process hangs, and where they stop, it aborts without saying which process is to blame.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax._src import distributed

FOLDER = "mmjax/peers/"
TOLD_PER_LIMIT = 6  # times that a process tells of itself before silence is judged, …
SLOWEST = 2.0  # … at least once in so many seconds
NAMED = 8  # processes in a message
LINGER = 2  # of these times, for the others to read why process 0, which keeps the store, ends


class Peers:
    """This process and the others.

    Args:
      limit: seconds after which a process that tells nothing is held for dead or stopped.
      status: what this process tells besides: "beats", how many things have ended, and "doing", what is under way.
      client: of the store; by default of `jax.distributed`.
      index, count: which process this is, and how many there are.
    """

    def __init__(
        self,
        limit: float,
        status: Callable[[], Mapping[str, Any]],
        *,
        client: Any = None,
        index: int | None = None,
        count: int | None = None,
    ):
        self.limit, self._status = limit, status
        self._client = distributed.global_state.client if client is None else client
        self.index = jax.process_index() if index is None else index
        self.count = jax.process_count() if count is None else count
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "number": 0, "ended": None}
        self._others: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._stop = threading.Event()
        # A thread of its own: the store of a stopped process 0 does not answer.
        self._thread = threading.Thread(target=self._talk, name="peers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def problem(self) -> str:
        """Which process has ended or is silent, as the beginning of a sentence; "" if all are well."""
        others = dict(self._others)
        for index, other in sorted(others.items()):
            if other["ended"]:
                return f"{self._name(index)} has ended: {other['ended']}"
        # One that has told nothing yet is still starting, and JAX's to watch.
        quiet = {index: time.monotonic() - self._heard[index] for index, other in others.items() if other["ended"] is None}
        silent = [index for index, seconds in quiet.items() if seconds > self.limit]
        if 0 in silent:
            silent = [0]  # it keeps the store: of the others nothing is known
        if not silent:
            return ""
        names, seconds = ", ".join(map(self._name, silent)), max(quiet[index] for index in silent)
        return f"{names} has been silent for {seconds:.0f} s (--config.logging.peer_seconds={self.limit:g}): killed or stopped"

    def behind(self) -> str:
        """Which processes have come least far, and what they are doing."""
        beats = {index: other["beats"] for index, other in self._others.items()} | {self.index: self._status()["beats"]}
        slowest = [index for index, number in sorted(beats.items()) if number == min(beats.values())]
        what = self._others | {self.index: self._status()}
        named = ", ".join(f"{self._name(index)} (in {what[index]['doing']!r})" for index in slowest[:NAMED])
        more = f" and {len(slowest) - NAMED} more" if len(slowest) > NAMED else ""
        return ("all stand at the same point: " if len(slowest) == self.count else "waited for: ") + named + more

    def wait_for_problem(self) -> str:
        """`problem`, as soon as there is one; "" if none shows within a little more than the limit."""
        deadline = time.monotonic() + self.limit + 2 * self._pause
        while not (problem := self.problem()) and time.monotonic() < deadline:
            time.sleep(self._pause / 4)
        return problem

    def leave(self, reason: str = "") -> None:
        """Tells the others that this process ends, and why if it has failed.

        Args:
          reason: one line; "" = all is well.
        """
        self._me["ended"] = reason
        self._stop.set()
        self._thread.join(self._pause)
        if self._thread.is_alive():
            return  # process 0 does not answer
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._tell()
        if reason and self.index == 0:
            time.sleep(LINGER * self._pause)

    @property
    def _pause(self) -> float:
        return min(self.limit / TOLD_PER_LIMIT, SLOWEST)

    def _name(self, index: int) -> str:
        other = self._me if index == self.index else self._others.get(index)
        return f"process {index}" + (f" on {other['host']} (pid {other['pid']})" if other else "")

    def _talk(self) -> None:
        # Where the store is gone, JAX ends this process at once; where it only stands still, silence tells.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while not self._stop.wait(self._pause):
                self._tell()
                self._listen()

    def _tell(self) -> None:
        self._me["number"] += 1
        text = json.dumps({**self._me, **self._status()})
        self._client.key_value_set(f"{FOLDER}{self.index}", text, allow_overwrite=True)

    def _listen(self) -> None:
        for key, text in self._client.key_value_dir_get(FOLDER):
            index, other = int(key.rpartition("/")[2]), json.loads(text)
            if index != self.index and other != self._others.get(index):
                self._heard[index] = time.monotonic()
                self._others[index] = other
