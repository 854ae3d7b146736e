"""The loop: what it logs, when it saves, and that it never waits for the step just queued."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mmjax.training.checkpoint import Checkpoints
from mmjax.training.goodput import Goodput
from mmjax.training.loop import Loop, Schedule, Services, average
from mmjax.training.metrics import Metrics, read_lines
from mmjax.training.preemption import Stopped, StopRequests
from mmjax.training.profile import ProfileWindow
from mmjax.training.progress import StageProgress
from mmjax.training.watchdog import Watchdog
from mmjax.types import UserError
from tests.conftest import ROOT
from tests.training import toy


@pytest.fixture
def services(tmp_path):
    made = Services(
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
        metrics=Metrics(tmp_path),
        progress=StageProgress("s", 10, shown=False),
        goodput=Goodput(),
        watchdog=Watchdog(tmp_path / "stacks.txt", 0.0),
        stop=StopRequests(),
        profile=ProfileWindow(tmp_path / "profile", 0, 0),
    )
    yield made
    made.checkpoints.close()
    made.metrics.close()


def make_step():
    return jax.jit(lambda state, batch: ({"x": state["x"] + batch}, {"loss": state["x"] * 1.0, "learning_rate": batch * 1.0}))


def run(services, schedule, *, start=0, record=None, step=None, **options):
    loop = Loop("s", step or make_step(), schedule, services, **options)
    batches = (jnp.float32(k) for k in itertools.count(start))
    if record:
        loop.resume(record)
    return loop.run({"x": jnp.float32(sum(range(start)))}, batches, start=start)


def test_lines_are_means_over_the_interval(services, tmp_path):
    state = run(services, Schedule(steps=7, log_every=3), examples=4)
    assert state["x"] == sum(range(7))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert lines[0]["train/loss"] == (0 + 0 + 1) / 3 and lines[1]["train/loss"] == (3 + 6 + 10) / 3
    assert lines[1]["train/learning_rate"] == 5, "where the schedule stands, not a mean"
    assert lines[1]["speed/examples_per_second"] == pytest.approx(4 * lines[1]["speed/steps_per_second"])
    assert "speed/steps_per_second" not in lines[2], "one step alone was under way before its clock started"
    assert {"seconds/compile", "seconds/data", "seconds/step", "seconds/checkpoint"} <= lines[-1].keys()


def test_half_filled_averages_survive(services, tmp_path):
    run(services, Schedule(steps=8, log_every=8))
    whole = read_lines(tmp_path / "metrics.jsonl")[-1]["train/loss"]
    saved = dataclasses.replace(services, checkpoints=Checkpoints(tmp_path / "again"))
    run(saved, Schedule(steps=5, log_every=8, save_every_steps=3))
    assert saved.checkpoints.steps() == [3, 5]
    saved.checkpoints.close()
    target = {"x": jnp.float32(0)}
    (tmp_path / "again" / "5").rename(tmp_path / "5")
    restored = saved.checkpoints.restore(target)
    assert restored.record["data"] == {"batch": 3} and len(restored.record["window"]) == 3
    run(services, Schedule(steps=8, log_every=8), start=3, record=restored.record)
    assert read_lines(tmp_path / "metrics.jsonl")[-1]["train/loss"] == whole


def test_step_is_queued_before_the_last_ones_metrics_are_read(services):
    events = []

    class Metric:
        def __init__(self, number):
            self.number = number

        def __float__(self):
            events.append(("read", self.number))
            return 0.0

    numbers = itertools.count(1)

    def step(state, batch):
        number = next(numbers)
        events.append(("queued", number))
        return state, {"loss": Metric(number)}

    run(services, Schedule(steps=4, log_every=10), step=step)
    order = ["queued 1", "queued 2", "read 1", "queued 3", "read 2", "queued 4", "read 3", "read 4"]
    assert [f"{kind} {number}" for kind, number in events] == order


def test_evaluates_inside_but_not_at_the_end(services, tmp_path):
    seen = []
    run(
        services,
        Schedule(steps=6, log_every=10, evaluate_every=2),
        evaluate=lambda state, step: seen.append((step, float(state["x"]))) or {"vqa/accuracy": 0.5},
    )
    assert seen == [(2, 1.0), (4, 6.0)]
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "eval/vqa/accuracy" in line]
    assert [line["step"] for line in lines] == [2, 4]


def test_interrupted_evaluation_is_owed(services, tmp_path):
    """Stopping does not wait for an evaluation, and the resumed run has its result all the same."""

    def interrupted(state, step):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("never reached")

    with services.stop, pytest.raises(Stopped) as stopped:
        run(services, Schedule(steps=6, log_every=10, evaluate_every=2), evaluate=interrupted)
    assert (stopped.value.code, stopped.value.step) == (143, 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    restored = services.checkpoints.restore({"x": jnp.float32(0)})
    assert restored.step == 2 and restored.record["owed"]
    again = dataclasses.replace(services, stop=StopRequests())
    schedule = Schedule(steps=6, log_every=10, evaluate_every=2)
    run(again, schedule, start=2, record=restored.record, evaluate=lambda state, step: {"x": float(state["x"])})
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "eval/x" in line]
    assert [(line["step"], line["eval/x"]) for line in lines] == [(2, 1.0), (4, 6.0)]


def test_check_names_steps_and_batches(services):
    def check(metrics, step):
        if metrics["learning_rate"] >= 5:
            raise UserError("stop here")

    with pytest.raises(UserError, match=r"stop here \(batches 5 to 5 of the stage, counted from 0\)"):
        run(services, Schedule(steps=9), check=check)


def test_data_that_end(services):
    loop = Loop("s", make_step(), Schedule(steps=9), services)
    with pytest.raises(UserError, match="ended after batch 2 of 9"):
        loop.run({"x": jnp.float32(0)}, iter([jnp.float32(0)] * 2))


def test_recompilation_is_said(services, caplog):
    step = make_step()
    batches = iter([jnp.float32(0), jnp.float32(0), jnp.zeros(3), jnp.zeros(3)])
    loop = Loop("s", step, Schedule(steps=4, log_every=100), services, compilations=step._cache_size, check=lambda *_: None)
    loop._settle = lambda leave=0: loop._pending.clear()  # metrics that are no scalars
    with caplog.at_level(logging.WARNING):
        loop.run({"x": jnp.float32(0)}, batches)
    assert caplog.text.count("COMPILED AGAIN") == 2 and "STEP 3 WAS" in caplog.text


def test_saves_by_the_clock(services):
    run(services, Schedule(steps=4, save_every_seconds=1e-9))
    assert services.checkpoints.steps() == [3, 4]


def test_profile_window(tmp_path):
    """In a process of its own: no profiler starts where the TPU's compiler has been at work without a TPU."""
    command = [sys.executable, toy.__file__, str(tmp_path), "--steps=6", "--profile-steps=2"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_average_leaves_out_what_is_not_finite():
    rows = [{"loss": 1.0, "all": math.nan}, {"loss": math.nan, "all": math.inf}, {"loss": 2.0, "all": math.nan}]
    assert average(rows)["loss"] == 1.5 and math.isnan(average(rows)["all"])
    assert average([]) == {}
