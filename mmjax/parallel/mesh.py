"""The device mesh: (replica, fsdp, tensor, sequence)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mmjax.types import UserError

# Outermost first: `replica` is the only axis that may span slices, whose links (DCN) are slow.
MESH_AXES = ("replica", "fsdp", "tensor", "sequence")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None, *, stage: str = "<stage>") -> Mesh:
    """Arranges the devices so that the fast links carry the axes that talk most.

    Args:
      sizes: size of each of MESH_AXES; one that is missing is 1, one that is −1 takes what the others leave.
      devices: default all devices of all processes.
      stage: name of the stage, for messages.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `replica` does not divide over the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    fixed = math.prod(size for size in shape if size != -1)
    for axis, size in zip(MESH_AXES, shape, strict=True):
        if size != -1 and len(devices) % size:
            raise _mismatch(f"mesh axis {axis!r} of size {size}", len(devices), stage, axis)
    if len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
        wide = max(MESH_AXES, key=lambda axis: sizes.get(axis, 1))
        raise _mismatch(f"mesh {dict(zip(MESH_AXES, shape, strict=True))} of {fixed} devices", len(devices), stage, wide)
    shape = [len(devices) // fixed if size == -1 else size for size in shape]
    return Mesh(_arrange(shape, devices, stage), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _mismatch(what: str, devices: int, stage: str, axis: str) -> UserError:
    return UserError(f"{what} does not fit {devices} devices; set --config.stages.{stage}.mesh.{axis} (-1 = the rest)")


def _arrange(shape: list[int], devices: Sequence[Any], stage: str) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices)
    if shape[0] % slices:
        raise UserError(
            f"mesh axis 'replica' of size {shape[0]} does not divide over {slices} slices; "
            f"set --config.stages.{stage}.mesh.replica to a multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh([shape[0] // slices, *shape[1:]], [slices, 1, 1, 1], devices)
