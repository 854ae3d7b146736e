"""What a stage needs and takes on a topology: compiled by its compiler, with no accelerator there."""

from __future__ import annotations

import dataclasses

from mmjax.parallel.topology import Topology, find_devices
from mmjax.training.flops_model import Flops, model_flops
from mmjax.training.parts import Part, parts_table, step_flops
from mmjax.training.plan.collectives import Collective, read_collectives
from mmjax.training.plan.program import Compiled, Program, compile_program, make_program
from mmjax.training.plan.roofline import Roofline, expected_collectives, roofline
from mmjax.training.stage import Experiment, Stage

RESERVE = (
    0.08  # of the memory, for what the program is not: the runtime, the next batches, copies while a checkpoint is written
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A stage on a topology.

    Args:
      topology: of the devices.
      program: the stage on their mesh.
      parts: its parts table.
      useful, hardware: FLOPs of a step on paper, by part: without what remat repeats and masks hide, and with all of it.
      counted: FLOPs of a step as it is traced.
      compiled: what the compiler said; None where it was not asked.
      collectives: of a step.
      read: whether they are read from the compiled program, or worked out from the parameters alone.
      roofline: the least time of a step.
    """

    topology: Topology
    program: Program
    parts: dict[str, Part]
    useful: dict[str, Flops]
    hardware: dict[str, Flops]
    counted: int
    compiled: Compiled
    collectives: list[Collective]
    read: bool
    roofline: Roofline

    @property
    def useful_flops(self) -> int:
        return round(sum(flops.total for flops in self.useful.values()))

    @property
    def hardware_flops(self) -> int:
        return round(sum(flops.total for flops in self.hardware.values()))

    @property
    def limit(self) -> int:
        """Bytes that the compiler gives a program on a device."""
        return self.compiled.limit or self.topology.chip.memory

    @property
    def needed(self) -> int:
        """Bytes that the step needs on a device at its peak."""
        return self.compiled.memory.peak if self.compiled.memory else self.compiled.needed

    @property
    def fits(self) -> bool:
        return self.compiled.memory is not None and self.needed <= (1 - RESERVE) * self.limit


def count_flops(experiment: Experiment, stage: Stage, topology: Topology) -> dict[str, tuple[int, int]]:
    """FLOPs of (forward, backward) by part, counted in the step without kernels: attention written out over whole rows.

    A kernel skips blocks that order forbids and makes the others' scores again in its backward pass; the two come to about the
    same, and differ from kernel to kernel.
    """
    plain = dataclasses.replace(stage, attention="xla", objective=dataclasses.replace(stage.objective, cross_entropy="xla"))
    program = make_program(experiment, plain, find_devices(topology))
    made = program.assembly
    return step_flops(made.definition, program.stage, program.objective, program.step, made.state, made.frozen, program.batch)


def make_plan(experiment: Experiment, stage: Stage, topology: Topology) -> Plan:
    """Compiles a stage's step for a topology.

    Raises:
      UserError: the parts, the rules or the mesh do not fit the topology.
    """
    program = make_program(experiment, stage, find_devices(topology))
    made, flops = program.assembly, count_flops(experiment, stage, topology)
    useful, hardware = (
        model_flops(experiment, stage, made.definition, made.state.trainable, made.mesh.shape, useful=each)
        for each in (True, False)
    )
    compiled = compile_program(program)
    found = None if compiled.text is None else read_collectives(compiled.text, made.mesh.shape)
    collectives = expected_collectives(program, hardware) if found is None else found
    return Plan(
        topology=topology,
        program=program,
        parts=parts_table(made.definition, made.state, made.frozen, made.shardings, flops),
        useful=useful,
        hardware=hardware,
        counted=sum(map(sum, flops.values())),
        compiled=compiled,
        collectives=collectives,
        read=found is not None,
        roofline=roofline(program, topology, hardware, collectives),
    )
