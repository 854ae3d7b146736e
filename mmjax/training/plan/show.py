"""What `launch.plan` prints: the config, and of each stage its parts, a row of its data, and its plan on a topology."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from mmjax.parallel.topology import Topology
from mmjax.training.parts import Part, parts_table, print_parts, step_flops
from mmjax.training.plan.program import make_program
from mmjax.training.plan.report import print_changes, print_plan, print_ranking, verdict, write_json
from mmjax.training.plan.row import print_row
from mmjax.training.plan.search import Candidate, could_fit, search
from mmjax.training.plan.stage_plan import Plan, make_plan
from mmjax.training.stage import Experiment, Stage
from mmjax.types.config import to_text
from mmjax.types.terminal import make_console


def show(
    experiment: Experiment,
    names: list[str],
    topology: Topology | None,
    file: Path | None = None,
    search_seconds: float = 0.0,
    console: Console | None = None,
) -> bool:
    """Prints the resolved config and these stages, and with a topology compiles each of them.

    Args:
      file: where the plans are also written as JSON.
      search_seconds: compile other ways to run the stages too, and begin no further one after so long; 0 = do not.

    Returns:
      Whether all stages fit, in one of the ways that were tried; True without a topology.

    Raises:
      UserError: the parts, the rules, the mesh or the data do not fit.
    """
    console, plans, found = console or make_console(), {}, {}
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
        if topology is None:
            continue
        print_plan(plans[name], console)
        if search_seconds:
            found[name] = searched(experiment, stage, topology, search_seconds)
            print_ranking(found[name], console)
        elif not plans[name].fits:
            print_changes(could_fit(experiment, plans[name]), topology, console)
    if file is not None and plans:
        write_json(plans, file, found)
    return all(plan.fits or any(other.fits for _, other in found.get(name, ())) for name, plan in plans.items())


def stage_parts(experiment: Experiment, stage: Stage) -> dict[str, Part]:
    """The parts table of a stage as one device would have it, from shapes alone."""
    program = make_program(experiment, stage, jax.local_devices()[:1])
    made = program.assembly
    flops = step_flops(made.definition, stage, program.objective, program.step, made.state, made.frozen, program.batch)
    return parts_table(made.definition, made.state, made.frozen, made.shardings, flops)


def searched(experiment: Experiment, stage: Stage, topology: Topology, seconds: float) -> list[tuple[Candidate, Plan]]:
    """Searches, with a bar on stderr: how much of the time is gone, and what is compiled."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        began, task = time.monotonic(), progress.add_task("searching", total=seconds)

        def report(candidate: Candidate, plan: Plan | None) -> None:
            what = " ".join(candidate.changes) or "the config as it is"
            progress.update(task, completed=time.monotonic() - began, description=what)
            if not console.is_terminal:
                console.print(f"compiling {what} …" if plan is None else verdict(plan), soft_wrap=True)

        return search(experiment, stage, topology, seconds=seconds, report=report)


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
