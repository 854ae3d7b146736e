"""The train step of a stage for devices that need not be there: traced, lowered and compiled from shapes alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from mmjax.data.batch import BatchShape, assemble
from mmjax.systems.objectives import Objective, make_objective
from mmjax.training.assembly import Assembly, stage_mesh
from mmjax.training.assembly import assemble as assemble_stage
from mmjax.training.stage import Experiment, Stage
from mmjax.training.step import lower_step, make_train_step
from mmjax.types import Batch, UserError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# How the TPU compiler says what a program needs and what there is.
REFUSAL = re.compile(r"(?:Used|\() ?([\d.]+)([KMGT]?)\)? (?:of|exceeds available HBM) ?\(?([\d.]+)([KMGT]?)")


@dataclasses.dataclass(frozen=True)
class Program:
    """A stage's step and all that it is called with, as shapes.

    Args:
      assembly: the stage on its mesh.
      objective: of the stage.
      step: of `make_train_step`.
      batch: shapes of a batch.
    """

    assembly: Assembly
    objective: Objective
    step: Any
    batch: Batch

    @property
    def stage(self) -> Stage:
        return self.assembly.stage


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, as the compiler plans them.

    Args:
      arguments: state, frozen parameters and the batch.
      aliased: of the arguments, what the step gives back in the same place: the donated state.
      temporary: everything else that lives during the step.
      peak: the most at any time.
      host: in the host's memory, where the stage offloads.
    """

    arguments: int
    aliased: int
    temporary: int
    peak: int
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What compiling gave.

    Args:
      seconds: that it took.
      memory: None = the compiler refused, the program does not fit.
      needed, limit: bytes by the refusal; 0 where there is none.
      refusal: its account of what is large.
      text: the optimised program, None where it cannot be printed.
    """

    seconds: float
    memory: Memory | None = None
    needed: int = 0
    limit: int = 0
    refusal: str = ""
    text: str | None = None


def make_program(experiment: Experiment, stage: Stage, devices: Sequence[Any]) -> Program:
    """A stage on the mesh that its config asks for, over these devices.

    Raises:
      UserError: the parts, the rules or the mesh do not fit.
    """
    assembly = assemble_stage(experiment, stage, stage_mesh(stage, devices))
    objective = make_objective(**vars(stage.objective))
    step = make_train_step(assembly.definition, stage, objective, assembly.optimizer, assembly.state, assembly.frozen)
    return Program(assembly, objective, step, batch_shapes(stage))


def batch_shapes(stage: Stage) -> Batch:
    """A stage's batch without its arrays."""
    names = {field.name for field in dataclasses.fields(BatchShape)}
    sizes = {name: value for name, value in vars(stage.data).items() if name in names}
    one = assemble([], BatchShape(**{**sizes, "rows": 1}))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((stage.data.rows, *leaf.shape[1:]), leaf.dtype), one)


def compile_program(program: Program) -> Compiled:
    """Compiles a step for its mesh; a program that its devices cannot hold is a result, not an error."""
    assembly = program.assembly
    lowered = lower_step(program.step, assembly.state, assembly.frozen, program.batch)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not REFUSAL.search(str(error)):  # it is not the memory: a kernel's scratch, a layout, a flag
            raise UserError(f"the compiler refuses the step: {' '.join(str(error).split())[:400]}") from None
        return _refused(str(error), time.perf_counter() - start)
    return Compiled(time.perf_counter() - start, _memory(compiled.memory_analysis()), text=_text(compiled))


def _memory(stats: Any) -> Memory:
    return Memory(
        arguments=stats.argument_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
        peak=getattr(stats, "peak_memory_in_bytes", 0) or stats.argument_size_in_bytes + stats.temp_size_in_bytes,
        host=stats.host_temp_size_in_bytes,
    )


def _refused(message: str, seconds: float) -> Compiled:
    match = REFUSAL.search(message)
    needed, limit = (int(float(match[i]) * UNITS[match[i + 1]]) if match else 0 for i in (1, 3))
    sizes = re.findall(r"Size: ([\d.]+[KMGT])\n(?:     Operator: op_name=\"(.*)\"\n)?     Shape: (\S+?)\{", message)
    large = [f"{size} {shape} of {operator or 'the program'}" for size, operator, shape in sizes[:3]]
    return Compiled(
        seconds, needed=needed, limit=limit, refusal="; ".join(large) or message.splitlines()[0].rpartition("HBM, ")[2]
    )


def _text(compiled: Any) -> str | None:
    """The program as text: libtpu fails to print most of those for v5p, v6e and TPU7x, and logs a native stack when it does."""
    try:
        with _without_native_stderr():
            return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None


@contextlib.contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Drops what native code writes to stderr: it writes to the descriptor, past `sys.stderr`."""
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    os.close(sink)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
