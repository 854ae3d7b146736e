"""Metrics lines, progress and the account of time."""

from __future__ import annotations

import io
import json
import math

import pytest

from mmjax.training.goodput import Goodput, summary
from mmjax.training.metrics import FILE, Metrics, read_lines
from mmjax.training.progress import StageProgress, duration
from mmjax.types import UserError


def test_floats_keep_their_bits(tmp_path):
    metrics = Metrics(tmp_path)
    value = 0.1 + 0.2
    metrics.write("vqa", 5, {"train/loss": value, "train/odd": math.nan})
    metrics.close()
    (line,) = read_lines(tmp_path / FILE)
    assert (line["stage"], line["step"], line["train/loss"], line["train/odd"]) == ("vqa", 5, value, None)


def test_rewind_drops_what_will_come_again(tmp_path):
    metrics = Metrics(tmp_path)
    for stage, step in [("first", 2), ("first", 4), ("second", 2), ("second", 4), ("third", 2)]:
        metrics.write(stage, step, {"train/loss": 1.0})
    with open(tmp_path / FILE, "a") as file:
        file.write('{"stage": "third", "st')
    assert metrics.rewind(["first", "second", "third"], "second", 3) == 4
    metrics.write("second", 4, {})
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("first", 2), ("first", 4), ("second", 2), ("second", 4)]


def test_tensorboard_and_other_processes(tmp_path):
    metrics = Metrics(tmp_path / "a", tensorboard=True)
    metrics.write("vqa", 1, {"train/loss": 1.0})
    metrics.close()
    assert list((tmp_path / "a" / "tensorboard" / "vqa").glob("events*"))
    other = Metrics(tmp_path / "b", primary=False, tensorboard=True)
    other.write("vqa", 1, {"train/loss": 1.0})
    other.close()
    assert not (tmp_path / "b").exists()


def test_missing_wandb_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb_project=p needs Weights & Biases; .*: pip install 'mmjax\[wandb\]'"):
        Metrics(tmp_path, wandb_project="p")


def test_accounts_add_up_to_the_wall_time():
    instant = 0.0
    goodput = Goodput(lambda: instant)
    instant = 1.0
    with goodput.charge("step"):
        instant = 3.0
        with goodput.charge("checkpoint"):
            instant = 7.0
        instant = 8.0
    before = goodput.seconds()
    assert (before["idle"], before["step"], before["checkpoint"]) == (1.0, 3.0, 4.0)
    instant = 9.5
    assert goodput.since(before)["idle"] == 1.5
    assert sum(goodput.seconds().values()) == 9.5
    assert summary(before) == "8.0 s: step 37.5%, checkpoint 50.0%, idle 12.5%"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress(stream):
    progress = StageProgress("vqa", 10, stream=stream)
    progress.update(5, {"train/loss": 1.23456, "speed/examples_per_second": 1234.0, "speed/steps_per_second": 0.5})
    progress.update(6, {"train/loss": 1.0})
    progress.note("evaluated")
    progress.update(10, {"train/loss": 0.5})
    progress.close()
    shown = stream.getvalue()
    assert "step 10/10, loss 0.5000, done" in shown and "vqa: evaluated" in shown
    if not stream.isatty():
        assert "vqa: step 5/10, loss 1.2346, 1,234 examples/s, 10s to go" in shown
        assert "step 6/10" not in shown, "plain lines come every ten seconds at most"


def test_progress_of_other_processes_is_silent():
    stream = io.StringIO()
    progress = StageProgress("vqa", 10, shown=False, stream=stream)
    progress.update(10, {})
    progress.note("text")
    progress.close()
    assert stream.getvalue() == ""


def test_durations():
    assert [duration(seconds) for seconds in (0.0, 42.0, 185.0, 7625.0)] == ["0s", "42s", "3m05s", "2h07m"]
