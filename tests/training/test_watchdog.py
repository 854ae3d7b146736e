"""The watchdog ends what hangs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmjax.training.watchdog import Watchdog

ROOT = Path(__file__).resolve().parents[2]

SLEEPS = "import time\ndef stuck(): time.sleep(60)\nstuck()"
# Matches for ever inside C, holding the interpreter lock, so that no Python thread can do anything.
HOLDS_LOCK = "import re\ndef stuck(): re.match('(a*)*b', 'a' * 60)\nstuck()"


@pytest.mark.parametrize("body", [SLEEPS, HOLDS_LOCK])
def test_hang_is_ended(tmp_path, body):
    path = tmp_path / "stacks.txt"
    program = "from mmjax.training import watchdog\nwatchdog.GRACE_SECONDS = 1.0\n"
    program += f"with watchdog.Watchdog({str(path)!r}, 1.0):\n"
    program += "".join(f"  {line}\n" for line in body.splitlines())
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1 and time.monotonic() - began < 25
    assert "in stuck" in path.read_text()


def test_beats_and_pauses_keep_it_quiet(tmp_path):
    with Watchdog(tmp_path / "stacks.txt", 0.4) as watchdog:
        for _ in range(4):
            time.sleep(0.2)
            watchdog.beat()
        with watchdog.paused():
            time.sleep(0.8)
    assert not (tmp_path / "stacks.txt").exists()


def test_off(tmp_path):
    with Watchdog(tmp_path / "stacks.txt", 0.0) as watchdog:
        watchdog.beat()
        with watchdog.paused():
            pass
    assert not list(tmp_path.iterdir())
