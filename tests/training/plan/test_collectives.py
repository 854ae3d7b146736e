"""Collectives, read from programs that XLA compiles here and from lines as the TPU compiler writes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.topology import find_devices, parse_topology, prepare
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


LOOP = """
%fused.1 (p: f32[1]) -> f32[1] {{
  %c.1 = {gather}, backend_config={{"async_collective_fusion_config":{{"flag_start":"-1","flag_end":"-1"}}}}
}}
%fused.2 (p: f32[1]) -> f32[1] {{
  %c.2 = {gather}, backend_config={{"async_collective_fusion_config":{{"flag_start":"2","flag_end":"8"}}}}
}}
%condition.1 (p: ({counter}[], f32[1])) -> pred[] {{
  %n.1 = {counter}[]{{:T(128)}} constant(6)
  %i.1 = {counter}[]{{:T(128)}} get-tuple-element(%p), index=0
  ROOT %lt.1 = pred[] compare(%i.1, %n.1), direction={direction}
}}
%body.1 (p: ({counter}[], f32[1])) -> ({counter}[], f32[1]) {{
  %f.1 = f32[1] fusion(%p), calls=%fused.1
  %f.2 = f32[1] fusion(%f.1), calls=%fused.2
  %by.1 = {counter}[]{{:T(128)}} constant({by})
  %i.2 = {counter}[]{{:T(128)}} get-tuple-element(%p), index=0
  %sum.1 = {counter}[]{{:T(128)}} add(%i.2, %by.1)
  %sum.2 = {counter}[]{{:T(128)}} copy(%sum.1)
  ROOT %t.2 = ({counter}[], f32[1]) tuple(%sum.2, /*index=1*/%f.2)
}}
ENTRY %main (p: f32[1]) -> f32[1] {{
  %first = {counter}[]{{:T(128)}} constant({first})
  %copy.1 = {counter}[]{{:T(128)}} copy(%first)
  %c.3 = {gather}
  %t.1 = ({counter}[], f32[1]) tuple(%copy.1, /*index=1*/%p)
  %w.1 = ({counter}[], f32[1]) while(%t.1), condition=%condition.1, body=%body.1
}}
"""


def loop(counter="s32", first=0, by=1, direction="LT"):
    gather = "bf16[8,4]{1,0} all-gather(%p), channel_id=3, replica_groups=[4,2]<=[8]"
    return LOOP.format(gather=gather, counter=counter, first=first, by=by, direction=direction)


@pytest.mark.parametrize(
    ("options", "turns"),
    [
        ({}, 6),
        ({"first": 1}, 5),  # the first turn was taken out of the loop
        ({"counter": "u32", "by": 2}, 3),  # pieces go in both directions at once
        ({"counter": "u32", "by": 4}, 2),
    ],
)
def test_what_runs_in_a_loop_and_before_it(options, turns, caplog):
    """In the loop it starts and ends in different fusions, and is one."""
    (found,) = read_collectives(loop(**options), MESH)
    assert (found.kind, found.count, found.executions) == ("all-gather", 2, 1 + turns)
    assert not caplog.text


def test_a_loop_that_says_not_how_often_it_turns_is_told(caplog):
    (found,) = read_collectives(loop(direction="NE"), MESH)
    assert found.executions == 2 and "how often body.1 turns is not said" in caplog.text


@pytest.mark.parametrize(
    ("transfer", "target", "kind", "sent"),
    [
        ("ALL_REDUCE", '"{1,2,3}x{0:3}"', "all-reduce", 2 * 2 / 3),
        ("ALL_GATHER", '"{1,2,3}x{0:3}"', "all-gather", 2),
        ("REDUCE_SCATTER", '"{1,2,3}x{0,1,2,3}"', "reduce-scatter", 2 / 3),
        ("ALL_TO_ALL", "{{100000,200000,300000},{100003,200003,300003}}", "all-to-all", 2 / 3),
        ("ONE_TO_ONE", "{{100000->200000},{200000->300000},{300003->100003}}", "collective-permute", 1),
    ],
)
def test_between_slices(transfer, target, kind, sent):
    """As libtpu 0.0.52 writes them, for three slices of four chips."""
    attributes = (
        f'{{_xla_host_transfer_rendezvous="r_0",_xla_megascale_target={target},_xla_megascale_transfer_type="{transfer}"}}'
    )
    shape = "(f32[512,8,128]{2,1,0:T(8,128)}, u32[], token[])"
    pair = "".join(
        f"  %{kind}.{i} = {shape} {kind}(%p), channel_id={i}, is_host_transfer=true, frontend_attributes={attributes}\n"
        for i, kind in enumerate(("send", "recv"))
    )
    mesh = {"replica": 3, "fsdp": 2, "tensor": 2, "sequence": 1}
    (found,) = read_collectives(f"ENTRY %main (p: f32[1]) -> f32[1] {{\n{pair}}}\n", mesh)
    assert (found.kind, found.axes, found.dtype) == (kind, ("replica",), "f32")
    assert found.bytes == pytest.approx(sent * 512 * 8 * 128 * 4)


@pytest.mark.heavy
@pytest.mark.usefixtures("optimised")
def test_two_slices_of_tpus():
    """Exactly what layers whose weights are split within a slice have to send: in a slice, and from it to the other."""
    topology = parse_topology("v5e:2x2*2")
    prepare(topology)
    mesh = make_mesh({"replica": 2, "fsdp": 4}, list(find_devices(topology)))
    rows, columns = (NamedSharding(mesh, PartitionSpec(*s)) for s in ((("replica", "fsdp"),), (None, "fsdp")))
    weights = jax.ShapeDtypeStruct((LAYERS, 1024, 1024), jnp.float32, sharding=columns)
    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=rows)

    def loss(weights, x):
        return (jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0] ** 2).sum()

    text = jax.jit(jax.grad(loss), out_shardings=columns).lower(weights, x).compile().as_text()
    found = {each.kind: each for each in read_collectives(text, dict(mesh.shape))}
    layer = 1024 * 1024 * 4
    assert {kind: (each.axes, each.executions) for kind, each in found.items()} == {
        "all-gather": (("fsdp",), 2 * LAYERS), "reduce-scatter": (("fsdp",), LAYERS), "all-reduce": (("replica",), LAYERS),
    }  # fmt: skip
    assert found["all-gather"].bytes == 2 * LAYERS * 3 / 4 * layer / 2  # in bfloat16
    assert found["reduce-scatter"].bytes == LAYERS * 3 / 4 * layer
    assert found["all-reduce"].bytes == LAYERS * layer / 4


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
