"""Every published system takes the same step on one device and on a mesh of eight, however it is split."""

from __future__ import annotations

import functools
import re

import jax
import optax
import pytest

from mmjax.parallel.mesh import MESH_AXES
from mmjax.training.step import lower_step
from mmjax.types import UserError
from tests.parallel.systems import SYSTEMS, distance, first_step, ready

MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 1, 4), (2, 1, 2, 2)]
QUICK = [("llava_lora", (2, 1, 2, 2))]
OTHERS = [(name, mesh) for name in SYSTEMS for mesh in MESHES if (name, mesh) not in QUICK]


def named(cases):
    return [f"{name}-{'.'.join(map(str, mesh))}" for name, mesh in cases]


def sizes(mesh):
    return dict(zip(MESH_AXES, mesh, strict=True))


def moments(state):
    """After one step of Adam: the clipped gradient times 1 − b1."""
    return optax.tree.get(state.opt_state, "mu")


@functools.cache
def on_one_device(name, drops):
    state, metrics = first_step(name, {}, drops=drops)
    return jax.device_get(state.trainable), jax.device_get(moments(state)), metrics["loss"]


def check_step(name, mesh, drops=True, **fields):
    parameters, gradient, loss = on_one_device(name, drops)
    made = ready(name, sizes(mesh), drops=drops, **fields)
    state, metrics = made.step(made.state, made.frozen, made.batch)
    assert abs(float(metrics["loss"]) - loss) <= 1e-5 * abs(loss)
    assert distance(moments(state), gradient) <= 1e-5
    assert distance(state.trainable, parameters) <= 1e-5
    for path, leaf in state.trainable.items():
        wanted = made.assembly.shardings[path]
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
        assert moments(state)[path].sharding.is_equivalent_to(wanted, leaf.ndim)


@pytest.mark.parametrize(("name", "mesh"), QUICK, ids=named(QUICK))
def test_the_step_of_one_device(name, mesh):
    check_step(name, mesh)


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "mesh"), OTHERS, ids=named(OTHERS))
def test_the_step_of_one_device_for_every_other_system_and_mesh(name, mesh):
    check_step(name, mesh)


@pytest.mark.heavy
def test_micro_batches_remat_and_media_that_divide_over_nothing():
    """Two rows of a micro-batch on each group of four devices, five pictures a row: an empty sixth makes three a device."""
    check_step("llava_1_5", (1, 2, 1, 4), accumulation=2, remat="full")


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["instructblip", "instructblip_t5", "llava_1_6"])
def test_micro_batches_and_remat_of_queries_sources_and_tiles(name):
    check_step(name, (1, 2, 1, 4), drops=False, accumulation=2, remat="full")


@pytest.mark.heavy
def test_an_encoder_whole_on_every_device_beside_a_split_language_model():
    rules = ((r"encoders\..*", {}),)
    frozen = ready("minigpt4", sizes((1, 8, 1, 1)), sharding=rules).frozen
    whole = {path.partition(".")[0]: leaf.sharding.is_fully_replicated for path, leaf in frozen.items() if leaf.ndim == 3}
    assert whole["encoders"] and not whole["llm"]
    check_step("minigpt4", (1, 8, 1, 1), sharding=rules)


def test_a_length_that_does_not_divide_is_refused_before_anything_is_compiled():
    with pytest.raises(UserError, match=r"data\.length=64 positions do not divide .* of size 3.*stage2\.mesh\.sequence"):
        ready("minigpt4", {"sequence": 3})


def gathered(program):
    """The results of a program's gathers: (dtype, shape)."""
    shape = r"(bf16|f32)\[([\d,]+)\]"
    lines = re.findall(r" = .*? all-gather(?:-start)?\(", program)
    return [(dtype, tuple(map(int, dims.split(",")))) for line in lines for dtype, dims in re.findall(shape, line)]


def test_no_device_has_the_activations_of_all_rows():
    rows = 40  # divides no width
    made = ready("llava_1_5", sizes((1, 2, 1, 4)), rows=rows)
    program = lower_step(made.step, made.state, made.frozen, made.batch).compile().as_text()
    shapes = [shape for _, shape in gathered(program)]
    assert (20, 128, 3, 128) in shapes, "keys and values are gathered over the sequence, rows stay"
    assert (20, 5, 9, 96) in shapes or (20, 45, 96) in shapes, "soft tokens are gathered over the sequence, rows stay"
    assert not [shape for shape in shapes if shape[0] % rows == 0], "rows are gathered nowhere"
