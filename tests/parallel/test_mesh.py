"""The mesh on eight virtual devices."""

from __future__ import annotations

import jax
import pytest

from mmjax.parallel.mesh import MESH_AXES, describe, make_mesh, resolve
from mmjax.types import UserError


def test_the_rest_goes_to_the_axis_of_size_minus_one():
    mesh = make_mesh({"replica": 2, "fsdp": -1, "tensor": 2})
    assert mesh.axis_names == MESH_AXES and dict(mesh.shape) == {"replica": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert len(set(mesh.devices.flat)) == 8


def test_some_of_the_devices():
    assert make_mesh({}, jax.devices()[:1]).size == 1
    assert make_mesh({"fsdp": -1}, jax.devices()[:4]).shape["fsdp"] == 4


@pytest.mark.parametrize(
    ("sizes", "axis"), [({"tensor": 3, "fsdp": -1}, "tensor"), ({"fsdp": 4}, "fsdp"), ({"fsdp": 8, "tensor": 2}, "fsdp")]
)
def test_sizes_that_do_not_fit_name_the_devices_and_the_flag(sizes, axis):
    with pytest.raises(UserError, match=rf"8 devices.*--config\.stages\.vqa\.mesh\.{axis}"):
        make_mesh(sizes, stage="vqa")


@pytest.mark.parametrize(
    ("sizes", "devices", "rows", "lengths", "slices", "expected"),
    [
        ({}, 1, 7, [30], 1, (1, 1, 1, 1)),
        ({}, 8, 16, [512], 1, (1, 8, 1, 1)),  # the rows take all
        ({}, 8, 12, [512], 1, (1, 4, 1, 2)),  # … or what divides them; the rest splits the sequence
        ({}, 8, 2, [512, 6], 1, (1, 2, 2, 2)),  # … which every length must divide by; the rest splits the widths
        ({}, 8, 2, [], 1, (1, 2, 4, 1)),  # no sequence
        ({}, 6, 4, [10], 1, (1, 2, 3, 1)),
        ({}, 512, 512, [2048], 2, (2, 256, 1, 1)),  # two slices
        ({}, 512, 128, [2048], 2, (2, 64, 1, 4)),
        ({"tensor": 2}, 8, 16, [512], 1, (1, 4, 2, 1)),  # what is given stays
        ({"sequence": 4}, 8, 16, [512], 1, (1, 2, 1, 4)),
        ({"replica": 4}, 8, 16, [512], 2, (4, 2, 1, 1)),
        ({"replica": 8}, 8, 16, [512], 1, (8, 1, 1, 1)),
        ({"fsdp": 2, "replica": -1}, 8, 3, [512], 1, (4, 2, 1, 1)),  # the rest, whatever it divides
        ({"fsdp": -1}, 8, 3, [512], 2, (2, 4, 1, 1)),
        ({"fsdp": 16}, 8, 16, [512], 1, (1, 16, 1, 1)),  # too much: make_mesh says so
    ],
)
def test_axes_that_are_not_given_follow_from_the_rows(sizes, devices, rows, lengths, slices, expected):
    resolved = resolve(sizes, devices, rows, lengths, slices=slices)
    assert tuple(resolved.values()) == expected and tuple(resolved) == MESH_AXES


def test_a_mesh_for_people():
    assert describe(make_mesh({"fsdp": 4, "sequence": 2})) == "8 devices: fsdp 4 × sequence 2"
    assert describe(make_mesh({}, jax.devices()[:1])) == "1 device"
