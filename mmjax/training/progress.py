"""What a person sees of a running stage: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from io import TextIOBase
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Seconds as "42s", "3m05s", "2h07m"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class StageProgress:
    """The progress of one stage.

    Args:
      stage: its name.
      total: its steps.
      start: steps done already.
      shown: False on other processes than the first.
      stream: where to, by default the standard output.
    """

    def __init__(self, stage: str, total: int, start: int = 0, *, shown: bool = True, stream: TextIOBase | None = None):
        self.stage, self.total, self.shown = stage, total, shown
        self._stream: Any = stream or sys.stdout
        self._began = self._last = time.monotonic()
        self._printed = -PLAIN_SECONDS
        self._live: Progress | None = None
        if shown and self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._live = Progress(*columns, console=Console(file=self._stream))
            self._task = self._live.add_task(stage, total=total, completed=start, text="compiling")
            self._live.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a metrics line: step of total, loss, how full the rows are, examples per second, time to go."""
        if not self.shown:
            return
        now = time.monotonic()
        parts = [f"step {step}/{self.total}"]
        if "train/loss" in values:
            parts.append(f"loss {values['train/loss']:.4f}")
        if "train/fill" in values:
            parts.append(f"rows {values['train/fill']:.0%} full")
        if "speed/examples_per_second" in values:
            parts.append(f"{values['speed/examples_per_second']:,.0f} examples/s")
        if step == self.total:
            parts.append(f"done in {duration(now - self._began)}")
        elif "speed/steps_per_second" in values:
            parts.append(f"{duration((self.total - step) / values['speed/steps_per_second'])} to go")
        text = ", ".join(parts)
        if self._live is not None:
            self._live.update(self._task, completed=step, text=text)
        elif now - self._printed >= PLAIN_SECONDS or step == self.total:
            self._printed = now
            print(f"{self.stage}: {text}", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Shows a line that stays: an evaluation's result, the account of time."""
        if not self.shown:
            return
        if self._live is not None:
            self._live.console.print(f"{self.stage}: {text}", highlight=False)
        else:
            print(f"{self.stage}: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
