"""The plan command."""

from __future__ import annotations

import subprocess
import sys

from tests.launch.conftest import ROOT


def test_an_unknown_stage_is_refused(refusal, config_file):
    line = refusal("plan", f"--config={config_file}", "--stage=vqq")
    assert line.startswith("--stage=vqq: the config has no such stage") and "vqa" in line


def test_a_plan_needs_no_data():
    command = [sys.executable, "-m", "launch.plan", "--config=experiments/llava/pretrain.py:tiny", "--config.seed=7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "seed = 7" in done.stdout and "total" in done.stdout and "matrix FLOP" in done.stdout
