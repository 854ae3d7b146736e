"""The command: what it prints, where, and how it exits."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmjax.data.records import open_source


def prepare(*flags):
    return subprocess.run([sys.executable, "-m", "launch.prepare", *flags], capture_output=True, text=True, check=False)


def test_makes_a_data_set_once(tmp_path):
    flags = ("--dataset=shapes", f"--out={tmp_path / 'shapes'}", "--limit=4")
    first, second = prepare(*flags), prepare(*flags)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout.strip().endswith("made") and "already complete" in second.stdout
    assert len(open_source(tmp_path / "shapes", "train")) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--dataset=shape",), "did you mean"), (("--dataset=shapes", "--runner=beams"), "there is local")],
)
def test_mistakes_are_one_line_and_code_2(tmp_path, flags, message):
    done = prepare(*flags, f"--out={tmp_path / 'x'}")
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
