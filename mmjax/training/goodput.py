"""Where the time goes: one clock that always charges exactly one account, so that the accounts add up to the wall time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

ACCOUNTS = ("compile", "data", "step", "replay", "checkpoint", "evaluation", "idle")


class Goodput:
    """Seconds by account.

    "compile": the first step of a stage; "data": waiting for a batch; "step": new steps; "replay": steps that a run before
    this one had done already; "checkpoint": the part of saving and restoring that blocks; "evaluation"; "idle": all else.

    Args:
      now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._seconds: dict[str, float] = {account: 0.0 for account in ACCOUNTS}
        self._account: str = "idle"
        self._since = now()

    def _switch(self, account: str) -> str:
        instant = self._now()
        self._seconds[self._account] += instant - self._since
        previous, self._account, self._since = self._account, account, instant
        return previous

    def account(self) -> str:
        """The account that time is charged to now: what is under way."""
        return self._account

    @contextlib.contextmanager
    def charge(self, account: str) -> Iterator[None]:
        """Charges what happens inside to an account; the outer account stands still meanwhile."""
        previous = self._switch(account)
        try:
            yield
        finally:
            self._switch(previous)

    def seconds(self) -> dict[str, float]:
        """Seconds of every account up to now; their sum is the wall time since the start."""
        self._switch(self._account)
        return dict(self._seconds)

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """Seconds of every account since an earlier answer of `seconds`."""
        return {account: value - before[account] for account, value in self.seconds().items()}


def summary(seconds: dict[str, float]) -> str:
    """One line for people: total seconds, then each account's share."""
    total = sum(seconds.values())
    shares = ", ".join(f"{account} {value / max(total, 1e-9):.1%}" for account, value in seconds.items() if value)
    return f"{total:.1f} s: {shares}"
