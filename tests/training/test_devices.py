"""The main job's own config on one device, on eight with fsdp, and on eight with fsdp and tensor: the same training."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
import pytest

import data_pipelines
from experiments.blip2 import shapes
from mmjax.data.records import open_source
from mmjax.data.stream import make_stream
from mmjax.parallel.axes import batch_sharding
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.objectives import make_objective
from mmjax.training.assembly import assemble, fill, first_state
from mmjax.training.load import stage_processor
from mmjax.training.run import answer_prior
from mmjax.training.stage import Experiment
from mmjax.training.step import make_train_step
from mmjax.types.config import from_config

STEPS = 20
ONE, FSDP, FSDP_TENSOR = {"fsdp": 1}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shapes"
    data_pipelines.prepare("shapes", path, limit=400)
    config = shapes.get_config()
    config.tokenizers.llm = str(path / "tokenizer")
    for stage in config.stages.values():
        stage["data"]["rows"] = 8
        for source in stage["data"]["mixture"].values():
            source["path"] = str(path)
    return from_config(Experiment, config)


def train(experiment, name, sizes):
    """Gradients of the first step, and the losses of the first steps."""
    stage = dataclasses.replace(experiment.stages[name], steps=STEPS)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = make_mesh({"replica": 1, "fsdp": 1, "tensor": 1, "sequence": 1, **sizes}, devices)
    assembly = assemble(experiment, stage, mesh)
    processor = stage_processor(experiment, stage)
    prompts, table = answer_prior(stage, processor)
    objective = make_objective(stage.objective.name, stage.objective.weights, prior=table)
    state = first_state(assembly, experiment, {})
    frozen = fill(assembly, experiment, {}, list(assembly.frozen))
    stream = make_stream(stage.data, processor, 0, open_source=open_source, **({"prior": prompts} if prompts else {}))
    step = make_train_step(assembly.definition, stage, objective, assembly.optimizer, state, frozen)
    gradient, losses = {}, []
    for k in range(STEPS):
        batch = jax.device_put(next(stream), batch_sharding(mesh))
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
        if not k:  # Adam's first moment is now (1 - b1) times the clipped gradient
            gradient = jax.device_get(optax.tree.get(state.opt_state, "mu"))
    stream.close()
    assert step._cache_size() == 1, "the step was compiled again"
    return gradient, losses


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "meshes"), [("stage1", [FSDP]), ("vqa", [FSDP, FSDP_TENSOR])])
def test_the_mesh_does_not_change_the_training(experiment, name, meshes):
    gradient, losses = train(experiment, name, ONE)
    scale = np.sqrt(sum(float(np.square(value).sum()) for value in gradient.values()))
    for mesh in meshes:
        other_gradient, other_losses = train(experiment, name, mesh)
        assert abs(other_losses[0] - losses[0]) <= 1e-5 * abs(losses[0]), mesh
        difference = np.sqrt(sum(float(np.square(other_gradient[path] - gradient[path]).sum()) for path in gradient))
        assert difference <= 1e-5 * scale, f"{mesh}: gradients differ by {difference / scale:.1e} of their norm"
        np.testing.assert_allclose(other_losses, losses, rtol=1e-3, err_msg=str(mesh))
