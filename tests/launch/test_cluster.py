from __future__ import annotations

import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def flags(checkout, config_file) -> dict[str, str]:
    return {
        "--engine": "tpu_vm",
        "--topology": "v5e:4x4",
        "--config": str(config_file),
        "--workdir": "gs://bucket/My run",
        "--zone": "us-west4-a",
        "--dirty": "true",
        "--print_only": "true",
    }


def arguments(flags: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in flags.items()]


def test_what_would_be_run_is_printed_and_nothing_is_run(flags, config_file, checkout):
    call = [sys.executable, "-m", "launch.cluster", *arguments(flags), "--config.stages.vqa.steps=7", "--stage=vqa"]
    done = subprocess.run(call, cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("==> ")] == ["==> run.sh <==", "==> host.sh <=="]
    assert "\nNAME=my-run\n" in done.stdout and "--accelerator-type=v5litepod-16" in done.stdout
    assert f"\nTRAIN=(--config={config_file} --config.stages.vqa.steps=7 --stage=vqa)\n" in done.stdout
    assert not (checkout / "runs/clusters/my-run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--topology": "v5x:4x4"}, "--topology=v5x:4x4: no such TPU; did you mean"),
        ({"--engine": "ssh"}, "flag --engine=ssh: value should be one of <gce|tpu_vm|gke|slurm|sky>"),
        ({"--workdir": "/home/me/run"}, "--workdir=/home/me/run is not shared between the hosts; name one in a bucket"),
        ({"--zone": ""}, "--engine=tpu_vm needs --zone"),
        ({"--config.stages.vqa.stpes": "7"}, "did you mean 'steps'?"),
    ],
)
def test_mistakes_are_one_line(flags, refusal, changes, message):
    assert message in refusal("cluster", *arguments({**flags, **changes}))


def test_a_missing_program_is_named(flags, refusal, monkeypatch, tmp_path):
    (tmp_path / "git").symlink_to(str(shutil.which("git")))
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal("cluster", *arguments({**flags, "--print_only": "false"}))
    assert message.startswith("--engine=tpu_vm needs gcloud: install the Google Cloud CLI")
