"""The mesh on eight virtual devices."""

from __future__ import annotations

import jax
import pytest

from mmjax.parallel.mesh import MESH_AXES, make_mesh
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
