"""What the engines call the accelerators of a topology: accelerator types, machine types, hosts.

A topology is `v5e:16x16`, or `v5e:16x16*2` for two slices, as `launch.plan` spells it; `h100:8*4` is four machines with eight
GPUs each. The names of the TPUs are those of Google's pages on TPU versions, TPU software versions, TPUs in GKE and TPU images.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mmjax.types.config import suggest
from mmjax.types.errors import UserError


@dataclass(frozen=True)
class Generation:
    """A generation of TPUs as each engine names it; "" where an engine has none of it."""

    accelerator: str  # accelerator type of the Cloud TPU API: this, a hyphen and the number of cores
    cores: int  # of a chip, as that number counts them
    runtime: str  # software version of the Cloud TPU API
    label: str  # gke-tpu-accelerator, the label of GKE's nodes
    machine: str  # machine type; {} stands for the chips of a host
    image: str  # image family of managed instance groups
    axes: int  # of its topologies


_IMAGE = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-{}t", "", 3),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", "", 2),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-{}t", _IMAGE, 3),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-{}t", _IMAGE, 2),
    "tpu7x": Generation("", 2, "", "tpu7x", "tpu7x-standard-{}t", "ubuntu-accel-2404-amd64-tpu-tpu7x", 3),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # and every shape of 4x4x4 cubes
CHIPS_PER_HOST = 4
ONE_HOST = 8  # chips: a flat slice of this size or less is one host


@dataclass(frozen=True)
class Slices:
    """One or several equal slices of TPUs, or machines with GPUs.

    Attributes:
      kind: a key of GENERATIONS, or a type of GPU in lower case.
      shape: the chips along each axis of a slice, "16x16"; of a machine, the number of its GPUs, "8".
      count: slices, or machines.
    """

    kind: str
    shape: str
    count: int = 1

    @property
    def tpu(self) -> Generation | None:
        return GENERATIONS.get(self.kind)

    @property
    def chips(self) -> int:
        """Of a slice."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def chips_per_host(self) -> int:
        if self.tpu is None or (self.tpu.axes == 2 and self.chips <= ONE_HOST):
            return self.chips
        return CHIPS_PER_HOST

    @property
    def hosts(self) -> int:
        """Of a slice."""
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """In the Cloud TPU API, "v5litepod-256"; "" where it has none."""
        return f"{self.tpu.accelerator}-{self.chips * self.tpu.cores}" if self.tpu and self.tpu.accelerator else ""

    @property
    def machine_type(self) -> str:
        return self.tpu.machine.format(self.chips_per_host) if self.tpu else ""

    def __str__(self) -> str:
        what = f"{self.count} x " if self.count > 1 else ""
        return f"{what}{self.kind}:{self.shape} ({self.hosts * self.count} hosts of {self.chips_per_host} chips)"


def parse(topology: str) -> Slices:
    """Reads a topology.

    Args:
      topology: "v5e:4x4", "v5p:4x4x8*2" for two slices, "h100:8*4" for four machines of eight GPUs.

    Raises:
      UserError: another form, or a slice of a shape that is not offered.
    """
    match = re.fullmatch(r"([A-Za-z][\w-]*):(\d+(?:x\d+)*)(?:\*(\d+))?", topology)
    if not match or not int(match[3] or 1):
        raise UserError(f"--topology={topology}: expected KIND:SHAPE, for example v5e:4x4, v6e:16x16*2 (two slices) or h100:8")
    kind, shape = match[1].lower(), match[2]
    if kind not in GENERATIONS and "x" in shape:
        raise UserError(f"--topology={topology}: no such TPU{suggest(kind, GENERATIONS)}")
    if kind in GENERATIONS and not _offered(shape, GENERATIONS[kind].axes):
        shapes = ", ".join(FLAT) if GENERATIONS[kind].axes == 2 else f"{', '.join(CUBES)}, or AxBxC of multiples of 4"
        raise UserError(f"--topology={topology}: {kind} has no slice of {shape}; there is {shapes}")
    if "x" not in shape and not 1 <= int(shape) <= 16:
        raise UserError(f"--topology={topology}: expected 1 to 16 GPUs in a machine; {kind}:8*4 is four machines of eight")
    return Slices(kind, shape, int(match[3] or 1))


def _offered(shape: str, axes: int) -> bool:
    lengths = [int(length) for length in shape.split("x")]
    cubes = axes == 3 and len(lengths) == 3 and all(length and length % 4 == 0 for length in lengths)
    return shape in (FLAT if axes == 2 else CUBES) or cubes
