"""The train step: accumulation, freezing, donation, metrics, compilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

from mmjax.training.state import abstract_parameters, abstract_state, partition
from mmjax.training.step import lower_step, make_train_step, micro_batches
from mmjax.types import UserError
from tests.training.tiny import Classification, set_up, tiny_batch, tiny_stage

FROZEN_LLM = ((r"encoders\..*|llm\..*", False), (".*", True))


def train(setup, steps=3, rows=16):
    state, metrics = setup.state, {}
    for index in range(steps):
        state, metrics = setup.step(state, setup.frozen, tiny_batch(rows, index))
    return state, jax.device_get(metrics)


def assert_close(a, b, tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), jax.device_get(a), jax.device_get(b)
    )


def test_the_loss_falls_and_the_metrics_are_replicated_float32_scalars():
    setup = set_up(tiny_stage())
    batch, losses = tiny_batch(), []
    state = setup.state
    for _ in range(10):
        state, metrics = setup.step(state, setup.frozen, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert set(metrics) == {
        "loss", "loss/class", "accuracy", "gradient_norm", "learning_rate", "guard/skipped", "guard/consecutive",
    }  # fmt: skip
    for value in metrics.values():
        assert value.shape == () and value.dtype == jnp.float32 and value.sharding.is_fully_replicated
    assert int(state.step) == 10 and setup.step._cache_size() == 1


def test_the_loss_is_the_weighted_mean_over_the_global_batch():
    setup, batch = set_up(tiny_stage(), objective=Classification(weights={"class": 0.5})), tiny_batch()
    module = setup.definition.bind(setup.state.trainable)
    sums, _ = Classification().sums(module, batch, jax.random.key(0))
    _, metrics = setup.step(setup.state, setup.frozen, batch)
    expected = float(sums["class"]) / batch["weights"].sum()
    assert float(metrics["loss/class"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(0.5 * expected, rel=1e-5)


def test_four_micro_batches_equal_one():
    whole = train(set_up(tiny_stage()))
    parts = train(set_up(tiny_stage(optimizer={"accumulation": 4})))
    assert_close(whole, parts, 1e-5)


def test_micro_batches_are_interleaved_and_keep_every_row():
    setup = set_up(tiny_stage(), {"fsdp": 8})
    mesh = setup.state.step.sharding.mesh
    rows = jax.jit(lambda x: micro_batches(x, 2, mesh)[0])(jnp.arange(32))
    assert rows.tolist() == [list(range(0, 32, 2)), list(range(1, 32, 2))]
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 2)}


def test_a_batch_without_anything_to_learn_changes_no_weight_but_by_decay():
    setup, batch = set_up(tiny_stage(optimizer={"weight_decay": 0.0})), tiny_batch()
    before = jax.device_get(setup.state.trainable)
    state, metrics = setup.step(setup.state, setup.frozen, {**batch, "weights": np.zeros(16, np.float32)})
    assert_close(state.trainable, before, 0)
    assert float(metrics["loss"]) == 0 and float(metrics["guard/skipped"]) == 0


def matrix_products(setup, rows=40):
    """Sorted shapes of the matrix products that a step uses. No shape of an activation is one of a weight."""
    jaxpr = jax.make_jaxpr(setup.step)(setup.state, setup.frozen, tiny_batch(rows)).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return {tuple(sorted(shape)) for shape in _dot_general_shapes(jaxpr)}


def _dot_general_shapes(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for sub in jaxprs_in_params(equation.params):
            yield from _dot_general_shapes(sub)


def test_no_weight_gradient_is_computed_for_a_frozen_matrix():
    encoder, connector, stacked, head = (6, 12), (12, 16), (16, 32), (8, 16)
    assert matrix_products(set_up(tiny_stage(rows=40))) >= {encoder, connector, stacked, head}
    frozen = matrix_products(set_up(tiny_stage(rows=40, trainable=FROZEN_LLM)))
    assert frozen & {encoder, connector, stacked, head} == {connector}


def test_frozen_parameters_keep_their_bits():
    setup = set_up(tiny_stage(trainable=FROZEN_LLM))
    before = jax.device_get(setup.frozen)
    assert set(setup.state.trainable) == {"connectors.image.kernel", "connectors.image.bias"}
    state, _ = train(setup)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(setup.frozen), before)
    assert state.trainable["connectors.image.kernel"].shape == (12, 16)


def test_the_state_is_donated_and_the_frozen_parameters_are_not():
    setup = set_up(tiny_stage(trainable=FROZEN_LLM))
    old = setup.state
    setup.step(old, setup.frozen, tiny_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.trainable))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(setup.frozen))


def test_dropout_depends_on_the_step_and_the_micro_batch_but_not_on_the_run():
    objective, batch = Classification(dropout=0.5), tiny_batch()
    losses = []
    for _ in range(2):
        setup = set_up(tiny_stage(optimizer={"learning_rate": 1e-12}), objective=objective)
        state = setup.state
        for _ in range(2):
            state, metrics = setup.step(state, setup.frozen, batch)
            losses.append(float(metrics["loss"]))
    assert losses[:2] == losses[2:] and losses[0] != losses[1]


def test_the_average_follows_the_weights():
    setup = set_up(tiny_stage(optimizer={"ema": 0.75}))
    before = jax.device_get(setup.state.trainable)
    state, _ = setup.step(setup.state, setup.frozen, tiny_batch())
    after = jax.device_get(state.trainable)
    assert_close(state.ema, {path: 0.75 * before[path] + 0.25 * after[path] for path in before}, 1e-6)


def test_bfloat16_frozen_parts_and_compute_with_float32_masters():
    stage = tiny_stage(trainable=FROZEN_LLM, dtype=((r"encoders\..*|llm\..*", "bfloat16"),), compute_dtype="bfloat16")
    setup = set_up(stage)
    assert {value.dtype for value in setup.frozen.values()} == {jnp.dtype("bfloat16")}
    state, metrics = train(setup)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    assert np.isfinite(metrics["loss"])


def test_a_step_compiles_on_shapes_alone():
    setup = set_up(tiny_stage(), {"fsdp": 4, "tensor": 2})
    abstract = abstract_parameters(setup.definition.specs, setup.resolved.dtype, setup.placement)
    trainable, frozen = partition(abstract, setup.resolved.trainable)
    state = abstract_state(trainable, setup.optimizer, setup.placement)
    step = make_train_step(setup.definition, setup.stage, Classification(), setup.optimizer, state, frozen)
    compiled = lower_step(step, state, frozen, tiny_batch()).compile()
    assert compiled.memory_analysis().alias_size_in_bytes > 0


@pytest.mark.parametrize(
    ("stage", "objective", "words"),
    [
        (tiny_stage(optimizer={"accumulation": 2}), Classification(pairwise=True), "optimizer.accumulation=1"),
        (tiny_stage(rows=12), Classification(), "12 rows"),
    ],
)
def test_what_cannot_be_split_is_refused_before_compiling(stage, objective, words):
    with pytest.raises(UserError, match=words):
        set_up(stage, {"fsdp": 8}, objective=objective)
