"""The least time that a step can take on a topology: the slowest of computing, memory, links and network, each at its peak."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from jax.sharding import NamedSharding

from mmjax.parallel.axes import STORAGE
from mmjax.parallel.topology import Topology
from mmjax.training.flops_model import Flops
from mmjax.training.parts import part_of
from mmjax.training.plan.collectives import SENT, Collective
from mmjax.training.plan.program import Program


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step by what they are spent on, if nothing else took any.

    Args:
      compute: matrix FLOPs, at the chips' peak in bfloat16.
      hbm: what is read from and written to the chips' memory.
      ici: what goes over the fast links within a slice.
      dcn: what goes over the network between slices.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def bound(self) -> str:
        """What the step waits for."""
        return max(dataclasses.asdict(self), key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """Of a step in which everything else happens meanwhile."""
        return getattr(self, self.bound)


def roofline(program: Program, topology: Topology, flops: Mapping[str, Flops], collectives: Iterable[Collective]) -> Roofline:
    """The roofline of a step.

    Args:
      flops: what the hardware does, by part.
      collectives: of `read_collectives` or `expected_collectives`.
    """
    chip, mesh = topology.chip, dict(program.assembly.mesh.shape)
    ici = dcn = 0.0
    for each in collectives:
        across = mesh["replica"] if "replica" in each.axes and topology.slices > 1 else 1
        group = math.prod(mesh[axis] for axis in each.axes)
        # A slice's devices reduce among themselves first; each then sends its share of the result to the other slices.
        share = SENT[each.kind](across) / SENT[each.kind](group) * across / group if across > 1 else 0
        dcn += each.bytes * share
        ici += each.bytes if group > across else 0
    return Roofline(
        compute=sum(part.total for part in flops.values()) / (topology.size * chip.flops),
        hbm=memory_traffic(program, flops) / chip.memory_rate,
        ici=ici / topology.link_rate,
        dcn=dcn / chip.network_rate,
    )


def memory_traffic(program: Program, flops: Mapping[str, Flops]) -> float:
    """Bytes that a step moves between a device and its memory: weights and optimizer, not activations.

    Each pass reads every weight in the compute dtype, and where it is stored in pieces writes what it has gathered first. The
    update reads the state and the gradients and writes the state.
    """
    assembly, total = program.assembly, 0.0
    for path, size, sharding in _leaves(program):
        whole = size / _ways(sharding, lambda axis: axis not in STORAGE)
        gathered = 2 if _ways(sharding, STORAGE.__contains__) > 1 else 1
        total += _passes(program, flops, path) * gathered * whole * _sent_bytes(program, path)
        if path in assembly.state.trainable:
            total += (2 * 12 + 4) * size / _ways(sharding)  # float32 weight and two moments, read and written; the gradient
    return total


def expected_collectives(program: Program, flops: Mapping[str, Flops]) -> list[Collective]:
    """What parameters alone make the devices send, where the compiled program cannot be read.

    Every pass gathers what is stored in pieces; gradients are reduced and scattered, and summed over replicas. What tensor
    and sequence parallelism exchange of activations is not among it.
    """
    assembly, mesh = program.assembly, dict(program.assembly.mesh.shape)
    sums = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0}
    for path, size, sharding in _leaves(program):
        split = _ways(sharding, STORAGE.__contains__)
        held = size * _sent_bytes(program, path) / _ways(sharding, lambda axis: axis not in STORAGE)
        if split > 1:
            sums["all-gather"] += _passes(program, flops, path) * SENT["all-gather"](split) * held
        if path in assembly.state.trainable:
            kind = "reduce-scatter" if split > 1 else "all-reduce"
            sums[kind] += assembly.stage.optimizer.accumulation * SENT[kind](math.prod(mesh[axis] for axis in STORAGE)) * held
    dtype = program.stage.compute_dtype
    axes = tuple(axis for axis in STORAGE if mesh[axis] > 1)
    found = [Collective(kind, axes, dtype, 0, 0, sent) for kind, sent in sums.items() if sent]
    if mesh["replica"] > 1:
        trained = sum(size / _ways(sharding) for path, size, sharding in _leaves(program) if path in assembly.state.trainable)
        sent = SENT["all-reduce"](mesh["replica"]) * trained * _compute_bytes(program)
        found.append(Collective("all-reduce", ("replica",), dtype, 0, 0, assembly.stage.optimizer.accumulation * sent))
    return found


def _leaves(program: Program) -> Iterable[tuple[str, int, NamedSharding]]:
    specs = program.assembly.definition.specs
    return ((path, math.prod(specs[path].shape), sharding) for path, sharding in program.assembly.shardings.items())


def _passes(program: Program, flops: Mapping[str, Flops], path: str) -> int:
    """How often a step goes through the weights of a part: forward, backward, and again for remat, for every micro-batch."""
    part = flops.get(part_of(path), Flops())
    return program.stage.optimizer.accumulation * sum(bool(each) for each in (part.forward, part.backward, part.again))


def _ways(sharding: NamedSharding, counts=lambda axis: True) -> int:
    """Into how many pieces the chosen mesh axes cut a leaf."""
    axes = [axis for entry in sharding.spec for axis in ((entry,) if isinstance(entry, str) else entry or ())]
    return math.prod(sharding.mesh.shape[axis] for axis in axes if counts(axis))


def _sent_bytes(program: Program, path: str) -> int:
    """Bytes of an element of a weight where it is gathered and multiplied: int8 stays so, all else is cast first."""
    return 1 if program.assembly.rules.dtype[path] == jnp.int8 else _compute_bytes(program)


def _compute_bytes(program: Program) -> int:
    return jnp.dtype(program.stage.compute_dtype).itemsize
