"""What stands on stderr when JAX aborts a process because its coordinator is gone.

JAX notices the death of process 0 within milliseconds and calls `abort` from a thread of its own: no exception, no handler of
Python's runs. A handler of C's does.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

_kept: list[Any] = []  # what C still points to


def speak_at_abort(text: str) -> None:
    """Writes a line to stderr when this process aborts.

    Args:
      text: the line.
    """
    line = f"\n{text}\n".encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def speak(_: int) -> None:
        os.write(2, line)

    _kept.append(speak)
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(ctypes.c_int(signal.SIGABRT), speak)
