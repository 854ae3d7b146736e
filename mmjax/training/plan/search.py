"""Which mesh, remat policy, accumulation and dtype of frozen parts let a stage fit, and which of these takes the least time.

Every combination is judged on paper first: the least memory that it can do with, and the least time that a step can take.
What cannot fit is left out; the others are compiled, the fastest on paper first, until enough of them fit or time is up.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.parallel.axes import batch_shards
from mmjax.parallel.topology import Topology, find_devices
from mmjax.training.assembly import stage_mesh
from mmjax.training.flops_model import model_flops
from mmjax.training.plan.program import Program, make_program
from mmjax.training.plan.roofline import expected_collectives, roofline
from mmjax.training.plan.stage_plan import RESERVE, Plan, make_plan
from mmjax.training.stage import Experiment, MeshConfig, OptimizerConfig, Rules, Stage
from mmjax.types import UserError

# Policies by what they keep on the chip, most first: the linear layers whose results are kept at least, beside a layer's input.
ATTENDING = ("query", "key", "value", "output")
POLICIES: dict[str, tuple[str, ...]] = {
    "none": (*ATTENDING, "gate", "up"),
    "dots_no_batch": (*ATTENDING, "gate", "up"),
    "attention": ATTENDING,
    "offload": (),
    "full": (),
}
ACCUMULATIONS = (1, 2, 4, 8, 16, 32)
MOST_TENSOR = 8
ENOUGH = 3  # that fit: whatever comes next is slower on paper


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run a stage, judged on paper.

    Args:
      stage: changed so.
      changes: flags that give it, those of the mesh as one.
      fixed: bytes of a chip that no policy saves: state, frozen parameters, gradients.
      inputs: bytes of a chip for the layers' inputs of a micro-batch, which all policies but "offload" keep there.
      kept: bytes of a chip for what the policy keeps besides.
      seconds: the least time of a step.
    """

    stage: Stage
    changes: tuple[str, ...]
    fixed: float
    inputs: float
    kept: float
    seconds: float

    @property
    def least(self) -> float:
        """Bytes of a chip below which no compiler gets."""
        return self.fixed + self.kept + (0 if self.stage.remat == "offload" else self.inputs)

    def needs_more_than(self, other: Candidate) -> bool:
        """Whether it cannot fit where the other does not."""
        order = list(POLICIES)
        keeps = order.index(self.stage.remat) <= order.index(other.stage.remat)
        return keeps and self.fixed >= other.fixed and self.inputs >= other.inputs


def search(
    experiment: Experiment,
    stage: Stage,
    topology: Topology,
    *,
    seconds: float,
    report: Callable[[Candidate, Plan | None], None] = lambda candidate, plan: None,
) -> list[tuple[Candidate, Plan]]:
    """Compiles the best candidates.

    Args:
      seconds: after which no other one is begun.
      report: called with each candidate before it is compiled, and with its plan after.

    Returns:
      Those that were compiled: what fits first, then by the least time of a step.
    """
    began, done = time.monotonic(), []
    limit = (1 - RESERVE) * topology.chip.memory
    for candidate in sorted(candidates(experiment, stage, topology), key=lambda each: each.seconds):
        if sum(plan.fits for _, plan in done) == ENOUGH or (done and time.monotonic() - began > seconds):
            break
        failed = (other for other, plan in done if not plan.fits)
        if candidate.least > limit or any(candidate.needs_more_than(other) for other in failed):
            continue
        report(candidate, None)
        plan = make_plan(experiment, candidate.stage, topology)
        report(candidate, plan)
        done.append((candidate, plan))
    return sorted(done, key=lambda each: (not each[1].fits, each[1].roofline.seconds))


def could_fit(experiment: Experiment, refused: Plan) -> list[Candidate]:
    """What could fit where a plan does not, the smallest change first, then the fastest.

    What the plan needs beside what is fixed is taken to grow with the positions of a chip's micro-batch.
    """
    stage, topology = refused.program.stage, refused.topology
    every = list(candidates(experiment, stage, topology))
    now = next((each for each in every if not each.changes), None)
    growth = max(refused.needed - now.fixed, 0) / now.inputs if now is not None and now.inputs else 1.0
    limit = (1 - RESERVE) * topology.chip.memory

    def expected(candidate: Candidate) -> float:
        return candidate.fixed + max(growth, 1.0) * candidate.inputs

    fitting = [each for each in every if each.stage.remat in (stage.remat, "full") and each.changes and expected(each) <= limit]
    return sorted(fitting, key=lambda each: (len(each.changes), each.seconds))


def as_it_is(experiment: Experiment, stage: Stage, topology: Topology) -> Candidate:
    """The stage without a change, on paper.

    Raises:
      UserError: the parts, the rules or the mesh do not fit the topology.
    """
    program = make_program(experiment, stage, find_devices(topology))
    return _candidate(experiment, stage, topology, program, stage.remat, stage.optimizer.accumulation, ())


def candidates(experiment: Experiment, stage: Stage, topology: Topology) -> Iterator[Candidate]:
    """Every combination by which the stage's rows and widths divide."""
    devices = find_devices(topology)
    given = dict(stage_mesh(stage, devices).shape)
    for mesh, dtype in itertools.product(meshes(topology), _dtypes(stage)):
        try:
            alone = dataclasses.replace(stage, mesh=MeshConfig(**mesh), dtype=dtype, optimizer=_accumulate(stage, 1))
            program = make_program(experiment, alone, devices)
        except UserError:
            continue  # what does not divide is no candidate
        moved = () if mesh == given else (" ".join(_flag(stage, f"mesh.{axis}", size) for axis, size in mesh.items()),)
        if dtype != stage.dtype:
            moved = (*moved, shlex.quote(_flag(stage, "dtype", json.dumps(dtype))))
        rows = stage.data.rows // batch_shards(program.assembly.mesh)
        for remat, accumulation in itertools.product(POLICIES, ACCUMULATIONS):
            if rows % accumulation == 0 and (accumulation == 1 or not program.objective.pairwise):
                yield _candidate(experiment, stage, topology, program, remat, accumulation, moved)


def meshes(topology: Topology) -> Iterator[dict[str, int]]:
    """The sizes that the axes can have; every slice is a replica."""
    within = topology.size // topology.slices
    sizes = [size for size in range(1, within + 1) if within % size == 0]
    for tensor, sequence in itertools.product(sizes, sizes):
        if tensor <= MOST_TENSOR and within % (tensor * sequence) == 0:
            fsdp = within // (tensor * sequence)
            yield {"replica": topology.slices, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}


def _candidate(
    experiment: Experiment,
    stage: Stage,
    topology: Topology,
    alone: Program,
    remat: str,
    accumulation: int,
    moved: tuple[str, ...],
) -> Candidate:
    changed = dataclasses.replace(alone.stage, remat=remat, optimizer=_accumulate(stage, accumulation))
    program = dataclasses.replace(alone, assembly=dataclasses.replace(alone.assembly, stage=changed))
    made = program.assembly
    flops = model_flops(experiment, changed, made.definition, made.state.trainable, made.mesh.shape)
    changes = (
        *moved,
        *([_flag(stage, "remat", remat)] if remat != stage.remat else []),
        *([_flag(stage, "optimizer.accumulation", accumulation)] if accumulation != stage.optimizer.accumulation else []),
    )
    on_paper = roofline(program, topology, flops, expected_collectives(program, flops))
    inputs, kept = (_layer_bytes(program, names) for names in (("down",), POLICIES.get(remat, ())))
    return Candidate(changed, changes, _fixed_bytes(program), inputs, kept, on_paper.seconds)


def _dtypes(stage: Stage) -> Iterator[Rules]:
    """The stage's dtype rules, and the same with int8 for what is frozen in bfloat16."""
    yield stage.dtype
    if any(dtype == "bfloat16" for _, dtype in stage.dtype):
        yield tuple((pattern, "int8" if dtype == "bfloat16" else dtype) for pattern, dtype in stage.dtype)


def _accumulate(stage: Stage, accumulation: int) -> OptimizerConfig:
    return dataclasses.replace(stage.optimizer, accumulation=accumulation)


def _flag(stage: Stage, name: str, value: Any) -> str:
    return f"--config.stages.{stage.name}.{name}={value}"


def _fixed_bytes(program: Program) -> float:
    """A chip's share of state and frozen parameters, and of the gradients in float32."""
    assembly = program.assembly
    held = sum(_shard(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves((assembly.state, assembly.frozen)))
    return float(held + 4 * sum(_shard(leaf) for leaf in assembly.state.trainable.values()))


def _layer_bytes(program: Program, names: Collection[str]) -> float:
    """What linear layers of these names give for a chip's part of a micro-batch, in all layers of the language model.

    What "down" gives is as wide as what a layer reads.
    """
    data, mesh = program.stage.data, program.assembly.mesh
    shards = batch_shards(mesh) * mesh.shape["sequence"] * program.stage.optimizer.accumulation
    itemsize = jnp.dtype(program.stage.compute_dtype).itemsize
    total = 0.0
    for path, spec in program.assembly.definition.specs.items():
        match = re.fullmatch(r"llm\.(.*\.)?layers\.(attention|mlp)\.(\w+)\.kernel", path)
        if match and match[3] in names:
            length = data.source_length if ".encoder." in path else data.length
            split = 1 if match[3] in ("output", "down") else mesh.shape["tensor"]
            total += spec.shape[0] * spec.shape[-1] * itemsize * data.rows * length / (shards * split)
    return total


def _shard(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape))
