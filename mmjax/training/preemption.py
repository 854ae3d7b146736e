"""Stopping when asked to: SIGTERM and Ctrl-C end a run after the step under way, at one step on all processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A run that was asked to stop and has saved. Exit code 143 after SIGTERM, 130 after Ctrl-C."""

    def __init__(self, signum: int, stage: str, step: int):
        super().__init__(128 + signum)
        self.stage = stage
        self.step = step


class Interrupted(BaseException):
    """A request to stop that came inside `StopRequests.interruptible`."""


class StopRequests:
    """Remembers a request to stop; a further one changes nothing, since the save is already on its way.

    With `jax.distributed`, SIGTERM belongs to JAX's preemption notifier, which makes all processes agree on one step; Ctrl-C
    on one of them is handed on to it as SIGTERM.
    """

    def __init__(self):
        self.received = 0
        self._interruptible = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            ours = (signal.SIGINT,) if jax.distributed.is_initialized() else SIGNALS
            self._previous = {signum: signal.signal(signum, self._on_signal) for signum in ours}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self._previous.items():
            # On its way out after a save, the process is not to be killed by an impatient second SIGTERM.
            leaving = signum == signal.SIGTERM and self.received
            signal.signal(signum, signal.SIG_IGN if leaving else handler)

    def _on_signal(self, signum: int, frame: Any) -> None:
        if not self.received:
            # No print: the handler may run inside one.
            os.write(2, b"\nstopping after this step, saving; the same command resumes\n")
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)
        self.received = self.received or signum
        if self._interruptible:
            self._interruptible = False
            raise Interrupted

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Long work that changes nothing, such as an evaluation: a request to stop ends it at once by Interrupted.

        Not with `jax.distributed`, where one process must not leave a collective that the others are in.
        """
        self._interruptible = not jax.distributed.is_initialized()
        try:
            if self._interruptible and self.received:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def poll(self, step: int) -> int:
        """The signal to stop for after this step, on all processes alike; 0 = go on. Asked once per step."""
        if jax.distributed.is_initialized():
            return (self.received or signal.SIGTERM) if multihost_utils.reached_preemption_sync_point(step) else 0
        return self.received
