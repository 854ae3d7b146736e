"""The watchdog: a run that hangs writes all its stacks to a file and ends, instead of holding its machines for nothing.

A stuck collective, data worker or file system raises nothing, and heartbeats between processes keep flowing meanwhile. Of
several processes each watches itself and the others, so that all end when one hangs or is gone, and say which.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from mmjax.training.peers import Peers
from mmjax.types import UserError

GRACE_SECONDS = 10.0
EXIT_CODE = 1


class Watchdog:
    """Ends the process when `beat` was not called for too long, or when another process of the run is gone.

    Args:
      path: where the stacks go; with several processes each has its number in the name, "stacks.1.txt".
      seconds: the limit; 0 = off.
      peer_seconds: how long another process may be silent; 0 = off.
      doing: what is under way, for the others' messages.
    """

    def __init__(self, path: Path, seconds: float, peer_seconds: float = 0.0, doing: Callable[[], str] = lambda: ""):
        several = jax.process_count() > 1
        path = Path(path)
        self.path = path.with_suffix(f".{jax.process_index()}{path.suffix}") if several else path
        self.seconds = seconds
        self.peers = Peers(peer_seconds, lambda: {"beats": self._beats, "doing": doing()}) if several and peer_seconds else None
        self._last = time.monotonic()
        self._beats = 0
        self._paused = 0
        self._armed = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._on:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a")
            if self.peers:
                self.peers.start()
            self.beat()
            self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not self._on:
            return
        self._stop.set()
        self._thread.join()
        if self.peers:
            self._leave(self.peers, error)
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self.path.stat().st_size:
            self.path.unlink()

    @property
    def _on(self) -> bool:
        return bool(self.seconds or self.peers)

    def _leave(self, peers: Peers, error: BaseException | None) -> None:
        """Tells the others of the end. An error of the runtime may only be the sign that another process is gone."""
        if error is None or isinstance(error, SystemExit):
            return peers.leave()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not isinstance(error, UserError | KeyboardInterrupt) and (problem := peers.wait_for_problem()):
            self._end(f"{problem}; seen here as {reason}")
        peers.leave(reason)

    def beat(self) -> None:
        """Something ended: the clock starts anew."""
        self._last = time.monotonic()
        self._beats += 1
        # The thread below needs the interpreter lock; this C timer ends even a process that hangs while holding it.
        if self.seconds and self._last - self._armed > 1.0:
            self._armed = self._last
            faulthandler.dump_traceback_later(self.seconds + GRACE_SECONDS, exit=True, file=self._file)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work that may rightly take longer than a step."""
        self._paused += 1
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self._paused -= 1
            self._armed = 0.0
            self.beat()

    def _watch(self) -> None:
        limits = [limit for limit in (self.seconds, self.peers.limit if self.peers else 0) if limit]
        while not self._stop.wait(min(1.0, min(limits) / 4)):
            if self.peers and (problem := self.peers.problem()):
                self._end(problem)
            silent = time.monotonic() - self._last
            if self.seconds and silent > self.seconds and not self._paused:
                problem = (
                    f"nothing has ended for {silent:.0f} s (--config.logging.hang_seconds={self.seconds:g}): the run hangs"
                )
                self._end(f"{problem}; {self.peers.behind()}" if self.peers else problem)

    def _end(self, problem: str) -> NoReturn:
        """Says why, to the other processes too, writes the stacks and ends."""
        message = (
            f"{problem}; it is ended here, the stacks of all threads are in {self.path}. The same command resumes from the "
            "last checkpoint."
        )
        print(message, file=sys.stderr, flush=True)
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {message}", file=self._file, flush=True)
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        if self.peers:
            self.peers.leave(problem)
        os._exit(EXIT_CODE)
