"""Stopping when asked to: SIGTERM and Ctrl-C end a run after the step under way, at one step on all processes."""

from __future__ import annotations

import os
import signal
import threading
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


class StopRequests:
    """Remembers a request to stop; a further one changes nothing, since the save is already on its way.

    With `jax.distributed`, SIGTERM belongs to JAX's preemption notifier, which makes all processes agree on one step; Ctrl-C
    on one of them is handed on to it as SIGTERM.
    """

    def __init__(self):
        self._received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            ours = (signal.SIGINT,) if jax.distributed.is_initialized() else SIGNALS
            self._previous = {signum: signal.signal(signum, self._on_signal) for signum in ours}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self._previous.items():
            # On its way out after a save, the process is not to be killed by an impatient second SIGTERM.
            leaving = signum == signal.SIGTERM and self._received
            signal.signal(signum, signal.SIG_IGN if leaving else handler)

    def _on_signal(self, signum: int, frame: Any) -> None:
        if not self._received:
            # No print: the handler may run inside one.
            os.write(2, b"\nstopping after this step, saving; the same command resumes\n")
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)
        self._received = self._received or signum

    def poll(self, step: int) -> int:
        """The signal to stop for after this step, on all processes alike; 0 = go on. Asked once per step."""
        if jax.distributed.is_initialized():
            return (self._received or signal.SIGTERM) if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._received
