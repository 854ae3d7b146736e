"""A stage that trains adapters on a language model together with the connector: all of it is saved, and leaves whole."""

from __future__ import annotations

import signal
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from absl import flags
from absl.testing import flagsaver

import data_pipelines
import mmjax
from launch import convert
from mmjax.interop import hf_forward
from mmjax.layers.lora import lora_scales
from mmjax.systems.parts import build_definition
from mmjax.training import run as run_module
from mmjax.training.checkpoint import restore_leaves
from mmjax.training.load import stage_processor
from mmjax.training.preemption import Stopped
from mmjax.training.run import train
from mmjax.training.stage import Experiment
from mmjax.types import Model
from mmjax.types.config import from_config
from tests.interop import tiny
from tests.training.test_run import make_config

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to:UserWarning"),
]

TOLERANCE = {"rtol": 0, "atol": 1e-4}
STAGE, QUERIES = "adapt", 2
RULES = [[r"llm\..*attention\.(query|value)\.kernel", {"rank": 2, "alpha": 3.0}], [r"llm\..*mlp\.(up|down)\.kernel", 3]]
SCALES = {"attention.query": 3.0 / 2, "attention.value": 3.0 / 2, "mlp.up": 8.0 / 3, "mlp.down": 8.0 / 3}


def configure(world, base) -> dict:
    """A BLIP-2 read from `base`, of which the adapters and the Q-Former are trained."""
    config = make_config(world)
    config["parts"]["llm"] |= {"layers": 2}
    config["parts"]["connectors"]["image"] |= {"dropout": 0.0}
    stage = config["stages"]["caption"] | {
        "trainable": [[r".*\.lora_[ab]", True], [r"connectors\..*", True], [".*", False]],
        "lora": RULES, "lora_alpha": 8.0, "evaluate": [], "evaluate_every": 0,
    }  # fmt: skip
    stage["optimizer"] |= {"learning_rate": 0.05}  # what was trained must show
    for part in (config["parts"]["llm"], config["parts"]["encoders"]["image"], config["parts"]["connectors"]["image"]):
        part["source"] = str(base)
    return config | {"stages": {STAGE: stage}, "evaluations": {}}


def make_base(config: dict, directory: Path) -> None:
    """A BLIP-2 in Hugging Face layout, every parameter drawn."""
    experiment = from_config(Experiment, config)
    definition, draw = build_definition(experiment.parts), np.random.default_rng(0)
    parameters = {
        path: jax.numpy.asarray(draw.normal(path.endswith("scale"), 0.25, spec.shape), np.float32)
        for path, spec in definition.specs.items()
    }
    processor = stage_processor(experiment, experiment.stages[STAGE])
    mmjax.save_pretrained(Model(definition, parameters, processor, {"parts": experiment.parts}), directory)


def run_convert(*arguments: str) -> None:
    with flagsaver.flagsaver():
        flags.FLAGS(["convert", *arguments])
        convert.main()


@pytest.fixture(scope="module", params=["float32", "int8"])
def trained(tmp_path_factory, request):
    """The frozen language model in floats, or in int8, of which whoever reads the run sees nothing:
    (base, workdir of a run that was stopped at its fourth step and resumed, workdir of one that was not)."""
    folder = tmp_path_factory.mktemp("lora")
    world, base, stopped, whole = (folder / name for name in ("shapes", "base", "stopped", "whole"))
    data_pipelines.prepare("shapes", world, limit=40)
    config = configure(world, base)
    config["stages"][STAGE]["dtype"] = [[r"llm\..*", request.param]]
    make_base(config, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda workdir: None)
        check, handler = run_module.guard.check, signal.getsignal(signal.SIGTERM)

        def stop_at_3(*arguments, **options):
            if arguments[2] == 3:
                signal.raise_signal(signal.SIGTERM)
            check(*arguments, **options)

        with patch.context() as stopping:
            stopping.setattr(run_module.guard, "check", stop_at_3)
            with pytest.raises(Stopped) as stop:
                train(config, stopped)
            assert 0 < stop.value.step < 6
        signal.signal(signal.SIGTERM, handler)
        assert train(config, stopped)[STAGE]["step"] == train(config, whole)[STAGE]["step"] == 6
    return base, stopped, whole


def leaves(workdir) -> dict[str, np.ndarray]:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    step, values = restore_leaves(workdir / "checkpoints" / STAGE, "trainable/", lambda path: sharding)
    assert step == 6
    return {path: np.asarray(value) for path, value in values.items()}


def inputs(directory) -> dict[str, np.ndarray]:
    """Two rows, placeholders first, the second row padded between them and its text."""
    draw, placeholder = np.random.default_rng(1), transformers.AutoConfig.from_pretrained(directory).image_token_index
    text = draw.choice(np.setdiff1d(np.arange(128), placeholder), (2, 9))
    return {
        "input_ids": np.concatenate([np.full((2, QUERIES), placeholder), text], 1),
        "attention_mask": np.array([[1] * 11, [1] * QUERIES + [0] * 3 + [1] * 6]),
        "pixel_values": draw.normal(size=(2, 3, 12, 12)).astype(np.float32),
    }


def test_adapters_and_connector_are_in_one_checkpoint(trained):
    base, workdir, whole = trained
    model, before, after = mmjax.from_pretrained(workdir), mmjax.from_pretrained(base), leaves(workdir)
    factors = {f"llm.layers.{layer}.lora_{name}" for layer in SCALES for name in "ab"}
    connector = {path for path in before.parameters if path.startswith("connectors.")}
    assert set(after) == factors | connector
    assert lora_scales(model.definition) == {f"llm.layers.{layer}": scale for layer, scale in SCALES.items()}
    for path, value in model.parameters.items():
        if path in after:
            np.testing.assert_array_equal(value, after[path], err_msg=path)
        else:
            assert np.asarray(value).tobytes() == np.asarray(before.parameters[path]).tobytes(), path
    assert all(np.abs(after[path]).max() > 1e-3 for path in factors)
    moved = {path for path in connector if (after[path] != np.asarray(before.parameters[path])).any()}
    assert "connectors.image.projection.kernel" in moved and "connectors.image.query_tokens" in moved
    for path, value in leaves(whole).items():
        assert value.tobytes() == after[path].tobytes(), path


def test_merged_for_transformers(trained, tmp_path):
    _, workdir, _ = trained
    run_convert(f"--source={workdir}", f"--target={tmp_path}/merged", "--to=hf")
    reference, report = transformers.Blip2ForConditionalGeneration.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_equal_logits(mmjax.from_pretrained(workdir), reference, inputs(tmp_path / "merged"))


def test_an_adapter_with_the_connector_for_peft(trained, tmp_path):
    base, workdir, _ = trained
    run_convert(f"--source={workdir}", f"--target={tmp_path}/adapter", "--to=peft")
    model, arrays = mmjax.from_pretrained(workdir), inputs(base)
    plain = transformers.Blip2ForConditionalGeneration.from_pretrained(base)
    expected = tiny.outputs(plain.eval(), arrays)["logits"]
    assert_equal_logits(model, peft.PeftModel.from_pretrained(plain, tmp_path / "adapter"), arrays)
    assert np.abs(hf_forward(model, arrays)["logits"] - expected).max() > 0.1
    again = mmjax.from_pretrained(tmp_path / "adapter")
    assert lora_scales(again.definition) == lora_scales(model.definition)
    assert again.parameters.keys() == model.parameters.keys()
    for path, value in model.parameters.items():
        assert np.asarray(value).tobytes() == np.asarray(again.parameters[path]).tobytes(), path


@torch.no_grad()
def assert_equal_logits(model, reference, arrays):
    read = arrays["attention_mask"] > 0
    expected = tiny.outputs(reference.eval(), arrays)["logits"][read]
    assert expected.std() > 0.5
    np.testing.assert_allclose(hf_forward(model, arrays)["logits"][read], expected, **TOLERANCE)
