"""MiniGPT-4's recipes train what was published, and nothing else."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments.minigpt4 import stage1, stage2
from mmjax.parallel.mesh import MESH_AXES
from mmjax.training.assembly import assemble
from mmjax.training.stage import Experiment
from mmjax.types import UserError
from mmjax.types.config import from_config


@pytest.mark.parametrize("recipe", [stage1, stage2])
@pytest.mark.parametrize(
    ("llm", "kernel", "bias"),
    [("vicuna_13b", (768, 5120), 5120), ("vicuna_7b", (768, 4096), 4096), ("llama2_7b", (5632, 4096), 4096)],
)
def test_one_linear_map_is_trained(recipe, llm, kernel, bias):
    experiment = from_config(Experiment, recipe.get_config(f"llm={llm}"))
    ((name, stage),) = experiment.stages.items()
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), MESH_AXES)
    assembly = assemble(experiment, dataclasses.replace(stage, name=name), mesh)
    trained = assembly.state.trainable
    assert sorted(leaf.shape for leaf in trained.values()) == sorted([kernel, (bias,)])
    decayed = {path.rpartition(".")[2]: assembly.rules.weight_decay[path] for path in trained}
    assert decayed == {"kernel": 1, "bias": 0} and stage.optimizer.weight_decay == 0.05
    optimizer = stage.optimizer
    handed_over = (1 + math.cos(math.pi * optimizer.warmup_steps / stage.steps)) / 2  # the cosine counts from the first step
    rate = optimizer.final_learning_rate + (optimizer.learning_rate - optimizer.final_learning_rate) * handed_over
    assert float(assembly.optimizer.schedule(0)) == pytest.approx(1e-6, rel=1e-5)
    assert float(assembly.optimizer.schedule(optimizer.warmup_steps)) == pytest.approx(rate)


def test_presets_and_variants_are_named():
    first, head = (from_config(Experiment, stage2.get_config(f"preset={name}")) for name in ("paper", "upstream"))
    assert [one.stages["stage2"].steps for one in (first, head)] == [400, 1000]
    assert [one.stages["stage2"].data.crop for one in (first, head)] == [(0.5, 1.0), ()]
    mixture = from_config(Experiment, stage1.get_config()).stages["stage1"].data.mixture
    assert {name: source.weight for name, source in mixture.items()} == {"laion_capfilt": 115, "cc_sbu_capfilt": 14}
    with pytest.raises(UserError, match="llm=vicuna is unknown; there are vicuna_13b, vicuna_7b, llama2_7b"):
        stage1.get_config("llm=vicuna")
