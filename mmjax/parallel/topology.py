"""Accelerators by name, and what their chips can do: all that has to be known of hardware that is not there.

A topology is named as libtpu names it: a kind of TPU and a grid of chips (`v5e:4x4`, `v5p:2x2x2`), times a number of slices
that only a data centre's network joins (`v5e:16x16*2`). `cpu:8` are virtual devices of this machine, `gpu:8` (or `h100:8`,
`h200:8`) the GPUs of one host. Nothing here imports JAX before it is asked for devices.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.types.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one JAX device: a whole chip, but of TPU7x a half.

    Args:
      platform: "tpu", "gpu" or "cpu".
      flops: peak matrix FLOP/s in bfloat16.
      memory: bytes that a program may have, by the compiler's count.
      memory_rate: bytes/s from and to that memory.
      link_rate: bytes/s out of the device over one fast link (ICI, NVLink), in one direction.
      dimensions: of the grid, each with a link on both sides; 0 = a switch joins all devices by one link each.
      largest: chips of the largest slice; 0 = no limit is known.
      ring: length, or a multiple of it, at which a dimension closes to a ring; a shorter one has half the links.
      devices: JAX devices of a chip.
      network_rate: bytes/s out of the device between slices (DCN).
    """

    platform: str
    flops: float
    memory: int
    memory_rate: float
    link_rate: float
    dimensions: int = 0
    largest: int = 0
    ring: int = 1
    devices: int = 1
    network_rate: float = 6.25e9


# Peaks and memory rates of TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; links: jax-ml.github.io/scaling-book/tpus
# (usable, one-way, per link; TPU7x as v5p). Memory of TPUs: what libtpu 0.0.52 names in its refusals. GPUs: NVIDIA's data
# sheets of the SXM modules, dense bfloat16. Network: an assumption, 200 Gbit/s for a host of four TPUs, 400 Gbit/s for a GPU.
# CPU: nominal, an order of magnitude.
CHIPS: dict[str, Chip] = {
    "v4": Chip("tpu", 275e12, int(30.75 * GIB), 1.228e12, 45e9, dimensions=3, largest=4096, ring=4),
    "v5e": Chip("tpu", 197e12, int(15.75 * GIB), 0.819e12, 45e9, dimensions=2, largest=256, ring=16),
    "v5p": Chip("tpu", 459e12, int(95.73 * GIB), 2.765e12, 90e9, dimensions=3, largest=8960, ring=4),
    "v6e": Chip("tpu", 918e12, int(31.24 * GIB), 1.638e12, 90e9, dimensions=2, largest=256, ring=16),
    "tpu7x": Chip(
        "tpu", 2307e12 / 2, int(94.74 * GIB), 7.37e12 / 2, 90e9 / 2, dimensions=3, largest=9216, ring=4, devices=2,
        network_rate=6.25e9 / 2,
    ),
    "h100": Chip("gpu", 989e12, 80 * 10**9, 3.35e12, 450e9, network_rate=50e9),
    "h200": Chip("gpu", 989e12, 141 * 10**9, 4.8e12, 450e9, network_rate=50e9),
    "cpu": Chip("cpu", 1e11, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 2e10, 1e10, network_rate=1e9),
}  # fmt: skip
ALIASES = {"gpu": "h100", "v5": "v5p"}
EXAMPLES = "v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:2x4, tpu7x:2x2x1 (slices: v5e:16x16*2), cpu:8, gpu:8, h100:8 or h200:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices by their kind and arrangement.

    Args:
      kind: an entry of CHIPS.
      grid: chips of a slice along each dimension.
      slices: how many.
    """

    kind: str
    grid: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.grid))}{f'*{self.slices}' if self.slices > 1 else ''}"

    @property
    def chip(self) -> Chip:
        """What each device can do."""
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        """JAX devices, of all slices."""
        return math.prod(self.grid) * self.slices * self.chip.devices

    @property
    def link_rate(self) -> float:
        """Bytes/s out of a device over all of its fast links, in one direction."""
        chip = self.chip
        along = [2 if length % chip.ring == 0 else 1 for length in self.grid if length > 1]
        return chip.link_rate * (max(sum(along), 1) if chip.dimensions else 1)


def parse_topology(name: str) -> Topology:
    """The topology of this name.

    Raises:
      UserError: there is none.
    """
    match = re.fullmatch(r"(\w+)(?::(\d+(?:x\d+)*))?(?:\*(\d+))?", name)
    kind = ALIASES.get(match[1], match[1]) if match else ""
    if match is None or kind not in CHIPS:
        raise UserError(f"--topology={name} is unknown; write for example {EXAMPLES}")
    chip, grid, slices = CHIPS[kind], tuple(map(int, (match[2] or "1").split("x"))), int(match[3] or 1)
    if len(grid) != max(chip.dimensions, 1) or not math.prod(grid) or not slices:
        form = "x".join("ABC"[: chip.dimensions]) or "N"
        raise UserError(f"--topology={name}: expected {kind}:{form}, each a number of chips; write for example {EXAMPLES}")
    if chip.largest and math.prod(grid) > chip.largest:
        raise UserError(f"--topology={name}: a slice of {kind} has {chip.largest} chips at most; add slices, {kind}:…*2")
    return Topology(kind, grid, slices)


def prepare(topology: Topology) -> None:
    """Sets the process up to compile for a topology that is not there; to be called before JAX starts.

    Raises:
      UserError: libtpu is missing.
    """
    if topology.chip.platform == "tpu" and not _has_libtpu():
        raise UserError(f"--topology={topology} needs the TPU compiler: pip install 'mmjax[plan]'")
    quiet_libtpu()
    # Several plans at once, each with its own copy of the compiler and none with a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if topology.chip.platform == "gpu" and Path("/dev/nvidia0").exists():
        return
    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy, and is not needed
    if topology.chip.platform != "tpu" and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", topology.size)


def quiet_libtpu() -> None:
    """Spares a machine that has libtpu but no TPU the lines that it prints about the hosts it looks for in vain.

    To be called before JAX starts. On a TPU VM nothing is changed.
    """
    if any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        return
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")


def find_devices(topology: Topology) -> Sequence[Any]:
    """The devices of a topology, to compile for: of TPUs their descriptions; GPUs that are there, else CPUs in their place.

    Raises:
      UserError: libtpu knows no such grid, or this process has too few devices.
    """
    import jax

    if topology.chip.platform == "tpu":
        return _describe(topology)
    there = jax.devices()
    if len(there) < topology.size:
        fitting = f"--topology={topology.kind}:{len(there)}"
        raise UserError(f"--topology={topology}: this process has {len(there)} devices; give {fitting}")
    return there[: topology.size]


def _describe(topology: Topology) -> Sequence[Any]:
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.kind == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as on v5p and later
    if math.prod(topology.grid) < 4:
        options["chips_per_host_bounds"] = (*topology.grid, 1, 1)[:3]  # hosts have 2x2 chips, if nothing else is said
    name = f"{topology.kind}:{'x'.join(map(str, topology.grid))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--topology={topology}: libtpu has no such slice ({reason}); write for example {EXAMPLES}") from None


def _has_libtpu() -> bool:
    import importlib.util

    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None
