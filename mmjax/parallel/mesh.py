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
NOT_GIVEN, REST = 0, -1


def resolve(
    sizes: Mapping[str, int], devices: int, rows: int, lengths: Sequence[int] = (), *, slices: int = 1
) -> dict[str, int]:
    """The size of every mesh axis, where a config gives some of them or none.

    What is given stays, and an axis of size −1 takes all that the other given ones leave. Else the axes that are not given
    take, in this order, of the devices that are left:
      replica: one for each slice.
      fsdp: the greatest divisor that also divides a replica's rows, since whole rows need no communication but weights.
      sequence: the greatest divisor that also divides every length. Nothing else need divide: the loss cuts its chunks out of
        every device's own positions, and media slots are filled up.
      tensor: the rest. Heads, widths and vocabularies must divide by it, which `mmjax.parallel.axes.shardings` checks.

    Args:
      sizes: by axis; one that is missing or 0 is not given, at most one is −1.
      devices: how many there are.
      rows: of a micro-batch.
      lengths: of the rows: positions of text and source; () = nothing has a sequence to split.
      slices: that the devices make up.

    Returns:
      The size of each of MESH_AXES. They need not multiply to the devices where too much is given: `make_mesh` says so.
    """
    given = {axis: size for axis in MESH_AXES if (size := sizes.get(axis, NOT_GIVEN)) != NOT_GIVEN}
    chosen = {"replica": slices, **given}
    left = max(1, devices // math.prod(size for size in chosen.values() if size != REST))
    if REST in given.values():
        return {axis: left if size == REST else size for axis in MESH_AXES for size in [chosen.get(axis, 1)]}
    divides = {
        "fsdp": lambda left: math.gcd(left, rows // chosen["replica"]),
        "sequence": lambda left: math.gcd(left, *lengths) if lengths else 1,
        "tensor": lambda left: left,
    }
    for axis, share in divides.items():
        if axis not in chosen:
            chosen[axis] = share(left)
            left //= chosen[axis]
    return {axis: chosen[axis] for axis in MESH_AXES}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None, *, stage: str = "<stage>") -> Mesh:
    """Arranges the devices so that the fast links carry the axes that talk most.

    Args:
      sizes: size of each of MESH_AXES; one that is missing is 1, one that is −1 takes what the others leave. A stage's are
        those of `resolve`.
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


def count_slices(devices: Sequence[Any]) -> int:
    """How many slices the devices make up: within one, all links are fast."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def describe(mesh: Mesh) -> str:
    """For people: "8 devices: fsdp 4 × sequence 2", axes of size 1 left out."""
    split = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    return f"{mesh.size} devices: {split}" if split else "1 device"


def _mismatch(what: str, devices: int, stage: str, axis: str) -> UserError:
    return UserError(
        f"{what} does not fit {devices} devices; set --config.stages.{stage}.mesh.{axis} (-1 = the rest, 0 = by the rule)"
    )


def _arrange(shape: list[int], devices: Sequence[Any], stage: str) -> np.ndarray:
    slices = count_slices(devices)
    if slices == 1:
        # 256 chips as fsdp 32 × sequence 8 cut a side of their 16 × 16 in two.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise UserError(
            f"mesh axis 'replica' of size {shape[0]} does not divide over {slices} slices; "
            f"set --config.stages.{stage}.mesh.replica to a multiple of {slices}"
        )
    within = [shape[0] // slices, *shape[1:]]
    return mesh_utils.create_hybrid_device_mesh(within, [slices, 1, 1, 1], devices, allow_split_physical_axes=True)
