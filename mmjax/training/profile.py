"""A window of steps seen by `jax.profiler`."""

from __future__ import annotations

from pathlib import Path

import jax


class ProfileWindow:
    """Traces the steps start+1 … start+steps into a directory that TensorBoard and Perfetto read.

    Args:
      directory: where traces go.
      start: steps before the window, so that compilation stays outside.
      steps: its length; 0 = off.
    """

    def __init__(self, directory: Path, start: int, steps: int):
        self.directory = Path(directory)
        self.first, self.last = start, start + steps
        self._open = False

    def before(self, step: int) -> None:
        """Called with the number of steps done; opens the window."""
        if self.first <= step < self.last and not self._open:
            jax.profiler.start_trace(str(self.directory))
            self._open = True

    def after(self, step: int) -> bool:
        """Whether the window is to be closed, once the device has finished this many steps."""
        return self._open and step >= self.last

    def close(self) -> None:
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
