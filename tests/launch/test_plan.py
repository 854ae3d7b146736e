"""The plan command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT


def test_an_unknown_stage_is_refused(refusal, config_file):
    line = refusal("plan", f"--config={config_file}", "--stage=vqq")
    assert line.startswith("--stage=vqq: the config has no such stage") and "vqa" in line


def test_a_plan_needs_no_data():
    command = [sys.executable, "-m", "launch.plan", "--config=experiments/llava/pretrain.py:tiny", "--config.seed=7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "seed = 7" in done.stdout and "total" in done.stdout and "matrix FLOP" in done.stdout


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--topology=v5e:3x3x3", "--topology=v5e:3x3x3: expected v5e:AxB, each a number of chips; write for example"),
        ("--topology=v9:4x4", "--topology=v9:4x4 is unknown; write for example v4:2x2x2, v5e:4x4"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused(refusal, config_file, flag, said):
    assert refusal("plan", f"--config={config_file}", flag).startswith(said)


@pytest.mark.heavy
def test_what_cannot_fit_is_answered_by_the_compiler_and_ends_with_3(tmp_path):
    """7B with all weights trained on four chips: 75 GB of state alone."""
    flags = ["--config=experiments/llava/finetune.py", "--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}"]
    done = subprocess.run([sys.executable, "-m", "launch.plan", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert not plan["fits"] and plan["compile_seconds"] < 60
    assert plan["hbm_bytes_per_chip"] > 2 * plan["hbm_limit_bytes"] and "does not fit: needs" in done.stdout
