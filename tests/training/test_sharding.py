"""Training on a mesh is training on one device."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from mmjax.training.step import lower_step
from tests.training.tiny import set_up, tiny_batch, tiny_stage

FROZEN_ENCODER = ((r"encoders\..*", False), (".*", True))


def train(mesh, **fields):
    stage = tiny_stage(trainable=FROZEN_ENCODER, **fields)
    setup = set_up(stage, mesh)
    state, losses = setup.state, []
    for seed in range(4):
        state, metrics = setup.step(state, setup.frozen, tiny_batch(seed=seed))
        losses.append(jax.device_get(metrics))
    assert setup.step._cache_size() == 1
    return jax.device_get(state), losses


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({"fsdp": 8}, marks=pytest.mark.heavy),
        pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.heavy),
        {"replica": 2, "fsdp": 2, "tensor": 2},
    ],
)
@pytest.mark.parametrize("fields", [{}, {"optimizer": {"accumulation": 2}, "remat": "full"}])
def test_sharded_equals_unsharded(mesh, fields):
    single, sharded = train(None, **fields), train(mesh, **fields)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), single, sharded)


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_weights_are_gathered_and_rows_never_are(mesh):
    rows = 2048
    setup = set_up(tiny_stage(trainable=FROZEN_ENCODER, rows=rows), mesh)
    program = lower_step(setup.step, setup.state, setup.frozen, tiny_batch(rows)).compile().as_text()
    local = rows // mesh["fsdp"]
    assert re.search(rf"f32\[{local},16\]\S* dot\(", program), "each device works on its own rows"
    assert not re.search(rf"\[{rows}[,\]]", program), "no device holds all rows of anything"
