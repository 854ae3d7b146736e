"""Collectives, read from programs that XLA compiles here and from lines as the TPU compiler writes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.parallel.mesh import make_mesh
from mmjax.training.plan.collectives import find_collectives, read_collectives

MESH = {"replica": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
LAYERS, ROWS, WIDTH = 5, 8, 16


def line(rest: str, shape: str = "bf16[8,4]{1,0}", kind: str = "all-gather", name: str = "main") -> str:
    return f"ENTRY %{name} (p: f32[1]) -> f32[1] {{\n  %c.1 = {shape} {kind}(%p), channel_id=1, {rest}\n}}\n"


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", ("fsdp",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("fsdp",)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", ("fsdp",)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1','axis_0'}", ("fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", ("fsdp", "tensor")),
    ],
)
def test_groups_of_devices_are_mesh_axes(groups, axes):
    (found,) = read_collectives(line(groups), MESH)
    size = {("fsdp",): 4, ("tensor",): 2}.get(axes, 8)
    assert found.axes == axes and found.count == found.executions == 1
    assert found.bytes == 8 * 4 * 2 * (size - 1) / size


def test_the_other_kinds_and_how_much_they_send():
    groups = "replica_groups=[2,4]<=[4,2]T(1,0)"
    sums = line(groups, "(bf16[8,4]{1,0:T(8,128)(2,1)}, /*index=1*/f32[2]{0})", "all-reduce")
    assert read_collectives(sums, MESH)[0].bytes == (8 * 4 * 2 + 2 * 4) * 2 * 3 / 4
    assert read_collectives(sums, MESH)[0].dtype == "bf16"
    fused = line(groups, kind="all-reduce", name="all-reduce-scatter.3.clone")
    (found,) = read_collectives(fused, MESH)
    assert (found.kind, found.bytes) == ("reduce-scatter", 8 * 4 * 2 * 3 / 4)
    moved = line("source_target_pairs={{0,1},{1,0},{2,2}}", "(f32[6]{0}, f32[6]{0}, u32[], u32[])", "collective-permute-start")
    (found,) = read_collectives(moved, MESH)
    assert (found.kind, found.axes, found.bytes) == ("collective-permute", ("tensor",), 24)
    assert read_collectives(line("replica_groups={{0},{1}}"), MESH) == []


def test_one_that_stands_in_the_text_several_times_counts_once():
    text = line("replica_groups=[4,2]<=[8]") + line("replica_groups=[4,2]<=[8]", name="async_collective_fusion.2")
    assert [found.executions for found in read_collectives(text, MESH)] == [1]


def test_a_scan_runs_its_collectives_once_a_layer():
    """Layers whose weights are split over four devices: each pass gathers them, the backward pass scatters gradients."""
    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    rows, columns = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), (None, "fsdp")))

    def loss(weights, x):
        def body(x, weight):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), rows), None

        return jax.lax.scan(body, x, weights)[0].sum()

    shapes = (jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32))
    gradient = jax.jit(jax.grad(loss), in_shardings=(columns, rows), out_shardings=columns)
    text = gradient.lower(*shapes).compile().as_text()
    found = read_collectives(text, dict(mesh.shape))
    gathered = sum(each.executions for each in found if each.kind == "all-gather")
    assert gathered % LAYERS == 0 and gathered >= LAYERS
    per_pass = LAYERS * WIDTH * WIDTH * 4 * 3 / 4
    assert sum(each.bytes for each in found if each.kind == "all-gather") == pytest.approx(per_pass * gathered / LAYERS)
    names = [each.name for each in find_collectives(text)]
    assert any("while/body" in name for name in names)
    assert all(isinstance(each.groups, np.ndarray) and each.groups.shape[1] == 4 for each in find_collectives(text))
