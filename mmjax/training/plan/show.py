"""What `launch.plan` prints: the config, and of each stage its parts, a row of its data, and its plan on a topology."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from mmjax.parallel.topology import Topology
from mmjax.training.parts import Part, parts_table, print_parts, step_flops
from mmjax.training.plan.program import make_program
from mmjax.training.plan.report import print_plan, write_json
from mmjax.training.plan.row import print_row
from mmjax.training.plan.stage_plan import make_plan
from mmjax.training.stage import Experiment, Stage
from mmjax.types.config import to_text


def show(
    experiment: Experiment,
    names: list[str],
    topology: Topology | None,
    file: Path | None = None,
    console: Console | None = None,
) -> bool:
    """Prints the resolved config and these stages, and with a topology compiles each of them.

    Args:
      file: where the plans are also written as JSON.

    Returns:
      Whether all stages fit; True without a topology.

    Raises:
      UserError: the parts, the rules, the mesh or the data do not fit.
    """
    console, plans = console or Console(), {}
    console.print(Text(to_text(dataclasses.replace(experiment, stages={name: experiment.stages[name] for name in names}))))
    for name in names:
        stage = experiment.stages[name]
        console.rule(name)
        if topology is None:
            print_parts(stage_parts(experiment, stage), console)
        else:
            with working(f"compiling {name} for {topology}"):
                plans[name] = make_plan(experiment, stage, topology)
            print_parts(plans[name].parts, console)
        print_row(experiment, stage, console)
        if name in plans:
            print_plan(plans[name], console)
    if file is not None and plans:
        write_json(plans, file)
    return all(plan.fits for plan in plans.values())


def stage_parts(experiment: Experiment, stage: Stage) -> dict[str, Part]:
    """The parts table of a stage as one device would have it, from shapes alone."""
    program = make_program(experiment, stage, jax.local_devices()[:1])
    made = program.assembly
    flops = step_flops(made.definition, stage, program.objective, program.step, made.state, made.frozen, program.batch)
    return parts_table(made.definition, made.state, made.frozen, made.shardings, flops)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Shows on stderr that something is under way, and for how long: compiling takes a minute or two."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{what} …")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield
