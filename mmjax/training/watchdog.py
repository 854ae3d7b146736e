"""The watchdog: a run that hangs writes all its stacks to a file and ends, instead of holding its machines for nothing.

A stuck collective, data worker or file system raises nothing, and heartbeats between processes keep flowing meanwhile.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

GRACE_SECONDS = 10.0
EXIT_CODE = 1


class Watchdog:
    """Ends the process when `beat` was not called for too long.

    Args:
      path: where the stacks go.
      seconds: the limit; 0 = off.
    """

    def __init__(self, path: Path, seconds: float):
        self.path = Path(path)
        self.seconds = seconds
        self._last = time.monotonic()
        self._paused = 0
        self._armed = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a")
            self.beat()
            self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.seconds:
            self._stop.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            if not self.path.stat().st_size:
                self.path.unlink()

    def beat(self) -> None:
        """Something ended: the clock starts anew."""
        self._last = time.monotonic()
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
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self.seconds and not self._paused:
                message = (
                    f"nothing has ended for {silent:.0f} s (--config.logging.hang_seconds={self.seconds:g}): the run hangs and "
                    f"is ended here; the stacks of all threads are in {self.path}. The same command resumes from the last "
                    "checkpoint."
                )
                print(message, file=sys.stderr, flush=True)
                print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {message}", file=self._file, flush=True)
                faulthandler.dump_traceback(file=self._file, all_threads=True)
                os._exit(EXIT_CODE)
