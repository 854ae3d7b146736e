"""A run that was stopped or killed, in whatever way and at whatever instant, ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmjax.training.metrics import read_lines
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).with_name("toy.py")
PACE = "--pace=0.03"


def start(workdir: Path, *options: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(TOY), str(workdir), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(workdir: Path, *options: str) -> None:
    """Runs to the end in this process, which spares a start."""
    toy.main([str(workdir), *options])


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    """Waits for an instant in the life of a run."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended first: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "the instant never came"
        time.sleep(0.001)


def curve(workdir: Path) -> list[dict]:
    """What was trained: every metrics line without the clocks."""
    return [
        {name: value for name, value in line.items() if name in ("stage", "step") or name.startswith("train/")}
        for line in read_lines(workdir / "metrics.jsonl")
    ]


def steps(workdir: Path) -> list[int]:
    return [line["step"] for line in read_lines(workdir / "metrics.jsonl")]


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints" / "toy").glob("*") if path.name.isdigit())


def saving(workdir: Path) -> bool:
    return any((workdir / "checkpoints" / "toy").glob("*.orbax-checkpoint-tmp*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(workdir)
    return workdir


def assert_same(workdir: Path, reference: Path, damaged: bool = False) -> None:
    assert curve(workdir) == curve(reference)
    assert (workdir / "final.txt").read_text() == (reference / "final.txt").read_text()
    assert saved(workdir) == [36, 40] and not saving(workdir)
    assert damaged or not list((workdir / "checkpoints" / "toy").glob("*.damaged"))


def test_uninterrupted(uninterrupted):
    assert steps(uninterrupted) == [*range(3, 40, 3), 40]
    losses = [line["train/loss"] for line in curve(uninterrupted)]
    assert losses[-1] < losses[0]
    finish(uninterrupted)
    assert steps(uninterrupted) == [*range(3, 40, 3), 40], "the same command again has nothing to do"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(tmp_path, uninterrupted, signum, code):
    process = start(tmp_path, PACE, "--save-every=0")
    wait_for(lambda: 9 in steps(tmp_path), process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert "Traceback" not in output
    (step,) = saved(tmp_path)
    assert 9 <= step < 40 and f"stopped at step {step}, saved" in output
    finish(tmp_path)
    assert curve(tmp_path) == curve(uninterrupted)
    assert (tmp_path / "final.txt").read_text() == (uninterrupted / "final.txt").read_text()


def test_asked_again_while_saving(tmp_path, uninterrupted):
    process = start(tmp_path, PACE)
    wait_for(lambda: 9 in steps(tmp_path), process)
    for _ in range(20):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 143, output
    assert output.count("stopped at step") == 1
    finish(tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_killed_between_saves(tmp_path, uninterrupted):
    process = start(tmp_path, PACE)
    wait_for(lambda: 15 in steps(tmp_path), process)
    process.kill()
    process.communicate()
    finish(tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_killed_while_saving(tmp_path, uninterrupted):
    process = start(tmp_path, PACE)
    wait_for(lambda: saved(tmp_path) and saving(tmp_path), process)
    process.kill()
    process.communicate()
    finish(tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_lines_beyond_the_checkpoint_are_dropped(tmp_path, uninterrupted):
    process = start(tmp_path, PACE, "--save-every=13")
    wait_for(lambda: saved(tmp_path) and 21 in steps(tmp_path), process)
    process.kill()
    process.communicate()
    assert saved(tmp_path) == [13] and max(steps(tmp_path)) >= 21
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "toy", "st')  # killed in the middle of a line
    finish(tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_newest_checkpoint_damaged(tmp_path, uninterrupted):
    process = start(tmp_path, PACE)
    wait_for(lambda: len(saved(tmp_path)) >= 2, process)
    process.kill()
    process.communicate()
    newest = tmp_path / "checkpoints" / "toy" / str(saved(tmp_path)[-1])
    record = newest / "record" / "metadata"
    record.write_bytes(record.read_bytes().replace(b'"step"', b'"stop"'))
    again = start(tmp_path)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "CHECKPOINT DAMAGED" in output and str(newest) in output
    assert_same(tmp_path, uninterrupted, damaged=True)


def test_second_run_on_the_same_directory(tmp_path):
    process = start(tmp_path, PACE, "--steps=1000")
    wait_for(lambda: (tmp_path / "lock.json").exists() and steps(tmp_path), process)
    second = start(tmp_path)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 2 and f"process {process.pid} on " in output
    process.kill()
    process.communicate()
    finish(tmp_path, "--steps=4")  # a lock dies with its process


def test_bad_batches_stop_the_run(tmp_path):
    process = start(tmp_path, "--nan-from=9")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "steps 10 to 12 gave bad updates (batches 9 to 11 of the stage" in output
    assert saved(tmp_path)[-1] == 8


def test_hang_is_ended_with_stacks(tmp_path):
    process = start(tmp_path, "--hang-at=6", "--hang-seconds=10")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "the run hangs" in output
    assert "in batches" in (tmp_path / "stacks.txt").read_text()


@pytest.mark.heavy
def test_kill_campaign(tmp_path, uninterrupted):
    """Killed again and again at random instants, every second time inside a save, until the run gets through."""
    rng = random.Random(0)
    kills = inside = 0
    for campaign in range(10):
        workdir = tmp_path / str(campaign)
        for attempt in range(5):
            process = start(workdir, "--pace=0.01")
            delay = rng.uniform(0, 0.4)
            deadline = time.monotonic() + 30
            size = len(steps(workdir))
            while process.poll() is None and time.monotonic() < deadline:
                if (attempt % 2 and saving(workdir)) or (not attempt % 2 and len(steps(workdir)) > size):
                    break
                time.sleep(0.0005)
            time.sleep(0 if attempt % 2 else delay)
            kills += process.poll() is None
            process.kill()
            process.communicate()
            inside += saving(workdir)
        finish(workdir)
        assert_same(workdir, uninterrupted)
    assert kills >= 25 and inside >= 10


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(workdir: Path, *options: str) -> list[subprocess.Popen]:
    port = free_port()
    return [start(workdir, f"--process={i}", "--processes=2", f"--port={port}", *options) for i in range(2)]


def expect(processes: list[subprocess.Popen], code: int) -> None:
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == code, output


@pytest.mark.heavy
@pytest.mark.parametrize("signalled", [0, 1])
def test_one_of_two_processes_is_asked_to_stop(tmp_path, monkeypatch, signalled):
    """Both save the same step, and the resumed run is that of two processes that nobody has disturbed."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    expect(start_two(tmp_path / "whole"), 0)
    processes = start_two(tmp_path / "stopped", "--pace=0.05", "--save-every=0")
    wait_for(lambda: 9 in steps(tmp_path / "stopped"), processes[0])
    processes[signalled].send_signal(signal.SIGTERM)
    expect(processes, 143)
    assert len(saved(tmp_path / "stopped")) == 1
    expect(start_two(tmp_path / "stopped"), 0)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    assert (tmp_path / "stopped" / "final.txt").read_text() == (tmp_path / "whole" / "final.txt").read_text()
