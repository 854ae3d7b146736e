"""Two processes on one machine are one run: the same numbers, one end, and one resume."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import data_pipelines
from mmjax.training import run as run_module
from mmjax.training.metrics import read_lines
from mmjax.training.run import load_model, train
from tests.training import toy
from tests.training.test_run import make_config

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240  # for a run that compiles, on a busy machine


class Pod:
    """Processes of one run, killed at the end whatever happens."""

    def __init__(self, command, count, devices):
        self.count, self.devices = count, devices
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.processes = [self._start(command(index, count, port)) for index in range(count)]

    def _start(self, arguments):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}",
        }
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            for process in self.processes:
                assert process.poll() is None, f"the run ended first: {process.communicate()[0]}"
            assert time.monotonic() < deadline, "the instant never came"
            time.sleep(0.01)

    def end(self, index, seconds=SECONDS):
        """Exit code and output of a process that ends in time."""
        output, _ = self.processes[index].communicate(timeout=seconds)
        return self.processes[index].returncode, output

    def expect(self, code):
        for index in range(self.count):
            found, output = self.end(index)
            assert found == code, output


def toys(workdir, *options, count=2):
    """The small network of toy.py; its processes look after each other."""

    def command(index, count, port):
        return [
            toy.__file__,
            workdir,
            "--peer-seconds=6",
            f"--process={index}",
            f"--processes={count}",
            f"--port={port}",
            *options,
        ]

    return Pod(command, count, devices=2)


def logged(workdir):
    return read_lines(workdir / "metrics.jsonl")


def saved(workdir, stage):
    return sorted(int(path.name) for path in (workdir / "checkpoints" / stage).glob("*") if path.name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    with toys(workdir) as pod:
        pod.expect(0)
    return workdir


def assert_same_toys(workdir, reference):
    assert (workdir / "final.txt").read_text() == (reference / "final.txt").read_text()
    assert [(line["step"], line["train/loss"]) for line in logged(workdir)] == [
        (line["step"], line["train/loss"]) for line in logged(reference)
    ]


@pytest.mark.heavy
def test_a_killed_process_ends_the_other_and_the_same_command_resumes(tmp_path, undisturbed):
    with toys(tmp_path, "--pace=0.1") as pod:
        pod.wait_for(lambda: 9 in [line["step"] for line in logged(tmp_path)])
        pod.processes[1].kill()
        killed = time.monotonic()
        code, output = pod.end(0, seconds=60)
        assert code == 1 and time.monotonic() - killed < 30
        assert f"process 1 on {socket.gethostname()} (pid {pod.processes[1].pid}) has been silent for" in output
        assert "The same command resumes" in output
    with toys(tmp_path) as pod:
        pod.expect(0)
    assert_same_toys(tmp_path, undisturbed)


@pytest.mark.heavy
def test_the_coordinator_is_killed(tmp_path, undisturbed):
    """JAX aborts the other at once; its last words say where to look."""
    with toys(tmp_path, "--pace=0.1") as pod:
        pod.wait_for(lambda: 9 in [line["step"] for line in logged(tmp_path)])
        pod.processes[0].kill()
        code, output = pod.end(1, seconds=60)
        assert code in (1, -signal.SIGABRT)
        assert "because process 0 at 127.0.0.1" in output or "process 0 on " in output
    with toys(tmp_path) as pod:
        pod.expect(0)
    assert_same_toys(tmp_path, undisturbed)


@pytest.mark.heavy
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named(tmp_path, stopped):
    """As a machine that stands still: the other one ends and says so; the stopped one ends as soon as it goes on."""
    with toys(tmp_path, "--pace=0.1", "--steps=1000") as pod:
        pod.wait_for(lambda: 9 in [line["step"] for line in logged(tmp_path)])
        pod.processes[stopped].send_signal(signal.SIGSTOP)
        code, output = pod.end(1 - stopped, seconds=60)
        assert code == 1 and f"process {stopped} on " in output and "has been silent for" in output
        assert "in run" in (tmp_path / f"stacks.{1 - stopped}.txt").read_text()
        pod.processes[stopped].send_signal(signal.SIGCONT)
        code, output = pod.end(stopped, seconds=60)
        assert code in (1, -signal.SIGABRT), output
        assert f"process {1 - stopped} on " in output or "because process 0 at" in output


@pytest.mark.heavy
@pytest.mark.parametrize("hanging", [0, 1])
def test_a_hanging_process_is_named(tmp_path, hanging):
    """It lives and answers, but its data never come: all end within the limit, with the stacks of each."""
    with toys(tmp_path, "--hang-at=12", f"--hang-process={hanging}", "--hang-seconds=15") as pod:
        pod.wait_for(lambda: 9 in [line["step"] for line in logged(tmp_path)])
        began = time.monotonic()
        ends = [pod.end(index, seconds=60) for index in range(2)]
        assert time.monotonic() - began < 15 + 10
    assert all(code in (1, -signal.SIGABRT) for code, _ in ends)
    name = f"process {hanging} on {socket.gethostname()} (pid {pod.processes[hanging].pid}) (in 'data')"
    assert any("the run hangs; " in output and name in output for _, output in ends), ends
    assert "in batches" in (tmp_path / f"stacks.{hanging}.txt").read_text()
    assert (tmp_path / f"stacks.{1 - hanging}.txt").stat().st_size


@pytest.mark.heavy
def test_a_mistake_of_one_process_ends_both(tmp_path):
    with toys(tmp_path, "--nan-from=9") as pod:
        ends = [pod.end(index, seconds=60) for index in range(2)]
    assert {code for code, _ in ends} <= {1, 2}
    assert any("gave bad updates" in output for _, output in ends)


# Real runs: the command, a tiny BLIP-2, packed rows with pictures.


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A config of one stage on a mesh."""
    path = tmp_path_factory.mktemp("data") / "shapes"
    data_pipelines.prepare("shapes", path, limit=40)

    def make(**mesh):
        config = make_config(path)
        stage = config["stages"]["caption"]
        stage |= {"trainable": [[".*", True]], "log_every": 1, "mesh": mesh}
        for name in ("evaluate", "evaluate_every"):
            del stage[name]
        return config | {"stages": {"caption": stage}, "evaluations": {}}

    return make


@pytest.fixture
def command(tmp_path):
    """Starts the command on several processes, or on one."""

    def start(config, workdir, *, count=2, devices=4, stop_at=0, differs=""):
        file = tmp_path / "config.py"
        (tmp_path / "config.json").write_text(json.dumps(config))
        body = f"return ConfigDict(json.load(open({str(tmp_path / 'config.json')!r})))"
        file.write_text(f"import json\nfrom ml_collections import ConfigDict\ndef get_config():\n    {body}\n")
        pod_file = Path(__file__).with_name("pod.py")

        def arguments(index, count, port):
            flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={index}"]
            stop = stop_at if index == count - 1 else 0
            return [
                pod_file,
                stop,
                int(signal.SIGTERM),
                f"--config={file}",
                f"--workdir={workdir}",
                *(flags if count > 1 else []),
                *([differs] if differs and index else []),
            ]

        return Pod(arguments, count, devices)

    return start


@pytest.mark.heavy
def test_a_process_with_another_config_is_named_by_both(make, command, tmp_path):
    with command(make(fsdp=8), tmp_path / "run", differs="--config.stages.caption.steps=7") as pod:
        for index in range(2):
            code, output = pod.end(index, seconds=60)
            assert code == 2 and "error: process 1 on " in output
            assert (
                "has another config than process 0: stages.caption.steps: " in output and "-> 7; give all processes" in output
            )


MESHES = [{"fsdp": 8}, {"replica": 2, "tensor": 2, "sequence": 2}]


@pytest.mark.heavy
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_two_processes_train_as_one(make, command, tmp_path, mesh):
    """Losses, gradients, what the metrics say of the data, and the parameters at the end."""
    one, two = tmp_path / "one", tmp_path / "two"
    with command(make(**mesh), two) as pod:
        for index in range(2):
            code, output = pod.end(index)
            assert code == 0, output
            assert ("2 processes with 8 devices" in output) == (index == 0)
            assert ("caption: " in output) == (index == 0), "one process speaks for all"
    train(make(**mesh), one)
    names = ("train/fill", "train/media_fill", "train/skipped", "train/cut")
    ours, theirs = logged(two), logged(one)
    assert [[line["step"], *(line[name] for name in names)] for line in ours] == [
        [line["step"], *(line[name] for name in names)] for line in theirs
    ]
    for name in ("train/loss", "train/gradient_norm"):
        np.testing.assert_allclose(*([line[name] for line in lines] for lines in (ours, theirs)), rtol=1e-5)
    trained, expected = load_model(two).parameters, load_model(one).parameters
    for path, value in expected.items():
        if path.endswith("key.bias"):
            continue  # its gradient is 0, since a softmax ignores what all keys share: Adam scales up the rounding
        np.testing.assert_allclose(trained[path], value, rtol=1e-4, atol=1e-5, err_msg=path)


class Killed(BaseException):
    pass


@pytest.mark.heavy
def test_resumes_on_other_hosts_and_devices(make, command, tmp_path, monkeypatch):
    """2 processes x 4 devices, then 1 x 8, then 1 x 4: the same examples, and so the same losses."""
    config, workdir = make(), tmp_path / "moved"
    with command(config, workdir, stop_at=2) as pod:
        pod.expect(143)
    steps = saved(workdir, "caption")
    assert len(steps) == 1 or steps[-1] < 6
    check = run_module.guard.check

    def killed(config, metrics, number, **options):
        if number == 5:
            raise Killed
        check(config, metrics, number, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.guard, "check", killed)
        with pytest.raises(Killed):
            train(config, workdir)
    with command(config, workdir, count=1, devices=4) as pod:
        pod.expect(0)
    train(config, tmp_path / "reference")
    ours, theirs = logged(workdir), logged(tmp_path / "reference")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3, 4, 5, 6]
    assert [line["train/fill"] for line in ours] == [line["train/fill"] for line in theirs]
    np.testing.assert_allclose(*([line["train/loss"] for line in lines] for lines in (ours, theirs)), rtol=1e-5)
    assert jax.device_count() == 8
