"""The state: where its leaves live, that they are its own, and that depth adds none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.training.state import abstract_parameters, abstract_state, init_state, partition
from tests.training.tiny import set_up, tiny_batch, tiny_stage

FROZEN_ENCODER = ((r"encoders\..*", False), (".*", True))


def make(layers=2, **mesh):
    return set_up(tiny_stage(trainable=FROZEN_ENCODER, optimizer={"ema": 0.9}), mesh or None, layers=layers)


def test_moments_and_average_live_like_their_parameter_and_all_else_is_replicated():
    setup = make(fsdp=4, tensor=2)
    state, path = setup.state, "llm.layers.up.kernel"
    adam = state.opt_state[1]
    for leaf in (state.trainable[path], state.ema[path], adam.mu[path], adam.nu[path]):
        assert leaf.sharding == setup.placement[path] and leaf.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    for leaf in (state.step, state.key, adam.count, state.opt_state[-1].count, *jax.tree.leaves(state.guard)):
        assert isinstance(leaf.sharding, NamedSharding) and leaf.sharding.is_fully_replicated
    after, _ = setup.step(state, setup.frozen, tiny_batch())
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == jax.tree.map(lambda leaf: leaf.sharding, setup.state)


def test_the_abstract_state_is_the_state():
    setup = make(fsdp=8)
    parameters = abstract_parameters(setup.definition.specs, setup.resolved.dtype, setup.placement)
    trainable, frozen = partition(parameters, setup.resolved.trainable)
    assert set(frozen) == {"encoders.image.layer.kernel", "encoders.image.layer.bias"}
    abstract = abstract_state(trainable, setup.optimizer, setup.placement, ema=True)

    def describe(leaf):
        return leaf.shape, leaf.dtype, leaf.sharding

    assert jax.tree.map(describe, abstract) == jax.tree.map(describe, setup.state)


def test_the_number_of_leaves_does_not_grow_with_depth():
    counts = []
    for layers in (12, 48):
        setup = make(layers)
        counts.append(len(jax.tree.leaves(setup.state)))
        assert setup.state.trainable["llm.layers.up.kernel"].shape[0] == layers
    assert counts[0] == counts[1]


def test_the_caller_keeps_its_parameters():
    setup = make()
    parameters = jax.tree.map(jnp.copy, setup.state.trainable)
    state = init_state(parameters, setup.optimizer, setup.placement, key=jax.random.key(0), ema=True)
    setup.step(state, setup.frozen, tiny_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.trainable, state.ema, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(parameters))


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_parameters_are_drawn_alike_on_every_mesh(mesh):
    one, many = make(), make(**mesh)
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((one.state.trainable, many.state.trainable)))
