"""Whole runs: stages in order, resumed at any point, refused when the workdir is another's."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import data_pipelines
from mmjax.training import run as run_module
from mmjax.training.assembly import assemble, fill
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.metrics import read_lines
from mmjax.training.preemption import Stopped
from mmjax.training.run import load_model, train
from mmjax.training.stage import Experiment
from mmjax.types import UserError
from mmjax.types.config import from_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shapes"
    data_pipelines.prepare("shapes", path, limit=40)
    return path


def make_config(world):
    """A language model, then a BLIP-2 around it, at the smallest width that runs."""

    def source(template, split="train"):
        return {"path": str(world), "split": split, "template": template}

    def stage(template, trainable, **data):
        return {
            "steps": 6,
            "objective": {"name": "language_modelling"},
            "data": {"mixture": {"shapes": source(template)}, "rows": 8, "image_size": 12, **data},
            "optimizer": {"learning_rate": 3e-3},
            "trainable": trainable,
            "log_every": 2,
        }

    def trunk(**more):
        return {"width": 16, "layers": 1, "heads": 2, "ffn": 32, **more}

    return {
        "name": "test",
        "parts": {
            "encoders": {"image": {"family": "vit", "image_size": 12, "patch_size": 6, **trunk()}},
            "connectors": {
                "image": {
                    "family": "qformer",
                    "queries": 2,
                    "frequency": 1,
                    "encoder_width": 16,
                    "vocab": 0,
                    "output_width": 16,
                    **trunk(),
                }
            },
            "llm": {"family": "opt", "vocab": 128, "max_positions": 208, **trunk()},
        },
        "tokenizers": {"llm": str(world / "tokenizer")},
        "stages": {
            "lm": stage("document", [[r"llm\..*", True], [".*", False]], length=200, media=0),
            "caption": stage("caption", [[r"llm\..*", False], [".*", True]], length=48, soft_tokens=2)
            | {"evaluate": ["test"], "evaluate_every": 2},
        },
        "evaluations": {"test": {"source": source("question_answer", "test")}},
        "checkpoint": {"every_steps": 2, "every_seconds": 0.0},
        "logging": {"tensorboard": False, "hang_seconds": 0.0},
    }


@pytest.fixture
def config(world):
    return make_config(world)


def stand_in(monkeypatch):
    """Stands in for evaluations and report, which have tests of their own: the mean of the model's weights."""
    calls = []

    def evaluate_model(model, name, source, *, limit, **options):
        calls.append((name, len(source), limit))
        return {"mean": float(np.mean([np.abs(np.asarray(value)).mean() for value in model.parameters.values()]))}

    monkeypatch.setattr(run_module, "evaluate_model", evaluate_model)
    monkeypatch.setattr(run_module, "write_report", lambda workdir: (workdir / "report.html").write_text(""))
    return calls


@pytest.fixture(autouse=True)
def evaluated(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    """A run that nothing has disturbed; left as it is."""
    workdir = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = stand_in(monkeypatch)
        summary = train(make_config(world), workdir)
    assert calls == [("test", 40, 200), ("test", 40, 200), ("test", 40, 0)]
    assert summary["caption"]["step"] == 6 and summary["lm"]["train"]["loss"] > 0
    return workdir


@pytest.fixture
def finished(reference, tmp_path):
    """A copy of it."""
    return shutil.copytree(reference, tmp_path / "finished")


def curve(workdir):
    keep = ("stage", "step")
    lines = read_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k in keep or k.startswith(("train/", "eval/"))} for line in lines]


def parameters(workdir):
    return {path: np.asarray(value) for path, value in load_model(workdir).parameters.items()}


def assert_same(workdir, reference):
    assert curve(workdir) == curve(reference)
    ours, theirs = parameters(workdir), parameters(reference)
    assert all((ours[path] == theirs[path]).all() for path in theirs)


def test_whole_run(config, finished, evaluated):
    steps = [(line["stage"], line["step"], "eval/test/mean" in line) for line in curve(finished)]
    lm = [("lm", step, False) for step in (2, 4, 6)]
    caption = [("caption", step, evaluated_there) for step in (2, 4, 6) for evaluated_there in (False, True)]
    assert steps == lm + caption
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "parts.json", "metrics.jsonl", "checkpoints", "tokenizer", "report.html"} <= names
    assert Checkpoints(finished / "checkpoints" / "lm").steps() == [4, 6]

    before = curve(finished)
    train(ConfigDict(config), finished)
    assert curve(finished) == before and not evaluated, "nothing is left to do"


@pytest.mark.heavy
def test_a_run_is_the_source_of_another(config, finished):
    """Parts begin with what a finished run has trained; a text branch and heads that it lacks are drawn."""
    parts = config["parts"]
    for part in (parts["encoders"]["image"], parts["connectors"]["image"]):
        part["source"] = str(finished)
    parts["connectors"]["image"] |= {"stage1": True, "vocab": 64}
    experiment = from_config(Experiment, config)
    stage = dataclasses.replace(experiment.stages["caption"], name="caption")
    assembly = assemble(experiment, stage)
    begun, trained = fill(assembly, experiment, {}, list(assembly.definition.specs)), parameters(finished)
    taken = [path for path in begun if path in trained and not path.startswith("llm.")]
    assert {path.split(".")[0] for path in taken} == {"encoders", "connectors"}
    for path in taken:
        np.testing.assert_array_equal(begun[path], trained[path], err_msg=path)
    heads = [path for path in begun if path.startswith("connectors.image.heads.")]
    words = "connectors.image.word_embedding.table"
    assert heads and words in begun and not {*heads, words} & set(trained)


def test_stages_build_on_each_other(finished):
    """The captioning stage keeps, bit for bit, the language model that the stage before has trained."""
    whole, lm = parameters(finished), load_model(finished, stage="lm").parameters
    assert set(lm) == set(whole)
    for path, value in whole.items():
        same = (np.asarray(lm[path]) == value).all()
        assert same or not path.startswith("llm.")
    assert any((np.asarray(lm[path]) != value).any() for path, value in whole.items())
    with pytest.raises(UserError, match="checkpoints of lm, caption; train vqa first"):
        load_model(finished, stage="vqa")


@pytest.fixture
def at(monkeypatch):
    """Does something at a step of a stage, or in its evaluations."""
    check, evaluate = run_module.guard.check, run_module.evaluate_model

    def make(step, action, *, evaluating=False):
        def checked(config, metrics, number, **options):
            if number == step and not evaluating:
                action()
            check(config, metrics, number, **options)

        def evaluated(*arguments, **options):
            if evaluating:
                action()
            return evaluate(*arguments, **options)

        monkeypatch.setattr(run_module.guard, "check", checked)
        monkeypatch.setattr(run_module, "evaluate_model", evaluated)

    return make


def sigterm():
    signal.raise_signal(signal.SIGTERM)


class Killed(BaseException):
    pass


def kill():
    raise Killed


def test_stopped_and_resumed(config, reference, at, tmp_path):
    """Stopped in the first stage, in an evaluation inside the second, at its last step, and in its final evaluation."""
    workdir, handler = tmp_path / "stopped", signal.getsignal(signal.SIGTERM)
    for stop, stage, step in (
        ({"step": 3}, "lm", 4),
        ({"step": 0, "evaluating": True}, "caption", 2),
        ({"step": 6}, "caption", 6),
        ({"step": 0, "evaluating": True}, "caption", 6),
    ):
        at(**stop, action=sigterm)
        with pytest.raises(Stopped) as stopped:
            train(config, workdir)
        assert (stopped.value.code, stopped.value.stage, stopped.value.step) == (143, stage, step)
        signal.signal(signal.SIGTERM, handler)
    at(step=0, action=sigterm)
    train(config, workdir)
    assert_same(workdir, reference)


@pytest.mark.heavy
def test_killed_and_resumed(config, reference, at, tmp_path):
    workdir = tmp_path / "killed"
    for step, evaluating in ((3, False), (0, True)):
        at(step=step, action=kill, evaluating=evaluating)
        with pytest.raises(Killed):
            train(config, workdir)
    at(step=0, action=kill)
    train(config, workdir)
    assert_same(workdir, reference)


@pytest.mark.heavy
def test_damaged_last_checkpoint_of_a_finished_stage(config, finished, caplog):
    before, lm = curve(finished), finished / "checkpoints" / "lm"
    shutil.rmtree(finished / "checkpoints" / "caption")
    record = lm / "6" / "record" / "metadata"
    record.write_bytes(record.read_bytes().replace(b'"step"', b'"stop"'))
    train(config, finished)
    assert "CHECKPOINT DAMAGED" in caplog.text and (lm / "6.damaged").exists()
    assert curve(finished) == before


def test_single_stage(config, tmp_path, capfd):
    with pytest.raises(UserError, match="--stage=vqa: the config has the stages lm, caption"):
        train(config, tmp_path, stage="vqa")
    with pytest.raises(UserError, match="stage 'lm' is not finished in .*--stage=lm"):
        train(config, tmp_path, stage="caption")
    assert set(train(config, tmp_path, stage="lm")) == {"lm"}
    assert "lm: trains on 8 devices: fsdp " in "".join(capfd.readouterr())


def test_workdir_of_another_config_is_refused(config, finished):
    other = copy.deepcopy(config)
    other["stages"]["lm"]["optimizer"]["learning_rate"] = 1e-2
    other["seed"] = 1
    with pytest.raises(
        UserError, match=r"holds a run of 'test' with another config: seed: 0 -> 1; stages.lm.optimizer.*--workdir"
    ):
        train(other, finished)
    free = copy.deepcopy(config)
    free["checkpoint"]["keep"] = 5
    free["logging"]["hang_seconds"] = 100.0
    free["stages"]["lm"]["mesh"] = {"fsdp": 2, "replica": -1}
    train(free, finished)
    assert json.loads((finished / "config.json").read_text())["checkpoint"]["keep"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft_tokens": 3}, "data.soft_tokens=3, but the connector gives 2 for each image"),
        ({"image_size": 24}, "data.image_size=24 must be --config.parts.encoders.image.image_size=12"),
        ({"queries": 1, "query_length": 8}, "data.queries=1 ask a connector that reads no text"),
        (
            {"queries": 1, "query_length": 9, "vocab": 40},
            "data.query_length=9 is more .* positions for text, .*max_positions=8",
        ),
    ],
)
def test_data_that_the_parts_cannot_read_are_refused(config, tmp_path, change, message):
    config["parts"]["connectors"]["image"] |= {"vocab": change.pop("vocab", 0), "max_positions": 8}
    config["stages"]["caption"]["data"] |= change
    with pytest.raises(UserError, match=rf"^--config.stages.caption.{message}"):
        train(ConfigDict(config), tmp_path)


def test_mistake_in_a_later_stage_is_found_first(config, tmp_path):
    config["stages"]["caption"]["learning_rate"] = [["conectors.*", 0.1]]
    with pytest.raises(UserError, match="stages.caption.learning_rate.*conectors"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_changed_data_are_refused(config, at, tmp_path, world):
    at(step=3, action=kill)
    with pytest.raises(Killed):
        train(config, tmp_path)
    other = tmp_path / "other"
    data_pipelines.prepare("shapes", other, limit=30)
    config["stages"]["lm"]["data"]["mixture"]["shapes"]["path"] = str(other)
    with pytest.raises(UserError, match="data of stage 'lm' are not those .* up to step 2"):
        train(config, tmp_path)


@pytest.mark.heavy
def test_resumes_on_another_mesh(config, reference, at, tmp_path):
    """Saved on all devices, restored onto a different arrangement of them: the same state, so nearly the same losses."""
    workdir = tmp_path / "mesh"
    config["stages"]["lm"]["mesh"] = {"fsdp": 2, "replica": -1}
    at(step=5, action=kill)
    with pytest.raises(Killed):
        train(config, workdir)
    config["stages"]["lm"]["mesh"] = {"fsdp": 4, "tensor": 2}
    at(step=0, action=kill)
    train(config, workdir, stage="lm")
    losses = [[line["train/loss"] for line in curve(path) if line["stage"] == "lm"] for path in (workdir, reference)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_loaded_model(reference):
    model = load_model(reference)
    assert model.processor.soft_tokens == 2 and model.processor.limit == 128
    assert all(leaf.sharding.device_set == {jax.devices()[0]} for leaf in model.parameters.values())
    assert all(value.dtype == "bfloat16" for value in load_model(reference, dtype="bfloat16").parameters.values())
