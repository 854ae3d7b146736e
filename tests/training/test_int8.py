"""A frozen language model in int8 under adapters: what a rule gives to whom, gradients, meshes, bytes, FLOPs."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmjax.systems.objectives import make_objective
from mmjax.training.assembly import assemble, fill, first_state
from mmjax.training.parts import parts_table, step_flops
from mmjax.training.plan.program import batch_shapes
from mmjax.types import UserError
from tests.training.test_kernels import llava, put_together, random_batch

ADAPTED = {
    "trainable": [[r"connectors\..*|.*\.lora_[ab]", True], [".*", False]],
    "lora": [[r"llm\.layers\..*kernel", 4]],
}
INT8, FLOAT = [[r"llm\..*", "int8"]], []


def two_steps(dtype, **sizes):
    """(assembly, frozen parameters, what is trained, metrics) after two steps from drawn weights."""
    experiment = llava(3, 40, dtype=dtype, **ADAPTED)
    made, step = put_together(experiment, jax.devices()[: int(np.prod(list(sizes.values())))], **sizes)
    state, frozen = first_state(made, experiment, {}), fill(made, experiment, {}, list(made.frozen))
    for _ in range(2):  # in the first, only of B a gradient is not zero
        state, metrics = step(state, frozen, random_batch(made.stage))
    return made, frozen, jax.device_get(state.trainable), jax.device_get(metrics)


@pytest.fixture(scope="module")
def quantised():
    return two_steps(INT8, fsdp=1)


@pytest.fixture(scope="module")
def plain():
    return two_steps(FLOAT, fsdp=1)


def test_matrices_are_int8_and_nothing_else_is(quantised):
    made, frozen, _, _ = quantised
    held = {path for path, dtype in made.rules.dtype.items() if dtype == "int8"}
    layers = {f"attention.{name}" for name in ("query", "key", "value", "output")} | {"mlp.up", "mlp.gate", "mlp.down"}
    assert held == {f"llm.layers.{name}.kernel" for name in layers}
    assert all(jax.tree.leaves(frozen[path])[0].dtype == "int8" for path in held)
    assert all(leaf.dtype == "float32" for path, leaf in frozen.items() if path not in held)
    assert made.rules.dtype["llm.layers.mlp.up.lora_a"] == "float32"


def test_what_is_trained_cannot_be_int8():
    experiment = llava(3, 40, dtype=INT8)
    with pytest.raises(UserError, match=r"stages\.finetune\.dtype: llm\..*kernel is trained, and int8 is for frozen matrices"):
        assemble(experiment, experiment.stages["finetune"])


@pytest.mark.heavy
def test_adapters_learn_as_over_floats(quantised, plain):
    assert quantised[3]["loss"] == pytest.approx(float(plain[3]["loss"]), rel=2e-2)
    assert quantised[3]["gradient_norm"] == pytest.approx(float(plain[3]["gradient_norm"]), rel=0.1)
    assert all(np.abs(value).max() > 0 for path, value in quantised[2].items() if path.endswith("lora_b"))


@pytest.mark.heavy
def test_eight_devices_do_what_one_does(quantised):
    _, frozen, after, metrics = quantised
    made, split, split_after, split_metrics = two_steps(INT8, fsdp=4, tensor=2)
    matrix = split["llm.layers.mlp.up.kernel"]
    assert matrix.qvalue.addressable_shards[0].data.size == matrix.qvalue.size / 8
    assert matrix.scale.sharding.spec[-2] is None
    for path, value in frozen.items():
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(value), jax.device_get(split[path]))
    np.testing.assert_allclose(split_metrics["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5), split_after, after)


def table_of(dtype):
    experiment = llava(3, 40, dtype=dtype, **ADAPTED)
    made, step = put_together(experiment, jax.devices()[:1])
    objective = make_objective(made.stage.objective.name, {}, chunk=made.stage.objective.chunk)
    flops = step_flops(made.definition, made.stage, objective, step, made.state, made.frozen, batch_shapes(made.stage))
    return made, step, parts_table(made.definition, made.state, made.frozen, made.shardings, flops)


def test_the_parts_table_counts_bytes_of_weights_and_scales_and_the_same_flops():
    (made, _, ours), (_, _, theirs) = table_of(INT8), table_of(FLOAT)
    matrices = {path: spec for path, spec in made.definition.specs.items() if made.rules.dtype[path] == "int8"}
    saved = sum(3 * np.prod(spec.shape) - 4 * spec.shape[0] * spec.shape[-1] for spec in matrices.values())
    assert theirs["llm"].weight_bytes - ours["llm"].weight_bytes == saved
    assert "int8" in ours["llm"].dtypes and ours["llm"].parameters == theirs["llm"].parameters
    assert (ours["llm"].forward_flops, ours["llm"].backward_flops) == (
        theirs["llm"].forward_flops,
        theirs["llm"].backward_flops,
    )


@pytest.mark.heavy
@pytest.mark.usefixtures("optimised")
def test_no_float_copy_of_the_matrices_is_made():
    """The compiled step holds fewer bytes by what its arguments save: its temporaries hold no more than before."""
    memory = []
    for dtype in (INT8, FLOAT):
        made, step, table = table_of(dtype)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (made.state, made.frozen))
        compiled = step.lower(*shapes, batch_shapes(made.stage)).compile().memory_analysis()
        memory.append((compiled.argument_size_in_bytes, compiled.temp_size_in_bytes, table["llm"].weight_bytes))
    (ours, our_room, our_weights), (theirs, their_room, their_weights) = memory
    assert theirs - ours == their_weights - our_weights
    assert our_room < 1.05 * their_room
