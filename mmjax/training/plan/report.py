"""A plan for people and for programs: tables on the terminal, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mmjax.parallel.mesh import describe
from mmjax.parallel.topology import Topology
from mmjax.training.plan.search import Candidate
from mmjax.training.plan.stage_plan import RESERVE, Plan

Ranking = list[tuple[Candidate, Plan]]

MANY = 8  # kinds of collectives that are shown


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan of a stage as plain values: bytes of one chip, FLOPs of a step of all."""
    compiled, memory = plan.compiled, plan.compiled.memory
    return {
        "fits": plan.fits,
        "topology": str(plan.topology),
        "mesh": dict(plan.program.assembly.mesh.shape),
        "hbm_bytes_per_chip": plan.needed,
        "hbm_limit_bytes": plan.limit,
        "hbm_reserve_bytes": round(RESERVE * plan.limit),
        "memory": memory and dataclasses.asdict(memory),
        "refusal": compiled.refusal,
        "useful_flops_per_step": plan.useful_flops,
        "hardware_flops_per_step": plan.hardware_flops,
        "counted_flops_per_step": plan.counted,
        "roofline_seconds": plan.roofline.seconds,
        "roofline": {**dataclasses.asdict(plan.roofline), "bound": plan.roofline.bound},
        "collectives": [dataclasses.asdict(each) for each in plan.collectives],
        "collectives_read": plan.read,
        "compile_seconds": compiled.seconds,
        "parts": {name: dataclasses.asdict(part) for name, part in plan.parts.items()},
    }


def write_json(plans: Mapping[str, Plan], path: Path, found: Mapping[str, Ranking] | None = None) -> None:
    """Writes the plan of one stage, or of several by their names; `found` are other ways to run them, the best first."""
    values = {name: plan_json(plan) for name, plan in plans.items()}
    for name, ranking in (found or {}).items():
        values[name]["search"] = [{"changes": each.changes, **plan_json(plan), "parts": None} for each, plan in ranking]
    single = next(iter(values.values()))
    several = {"fits": all(plan.fits for plan in plans.values()), "stages": values}
    path.write_text(json.dumps(single if len(values) == 1 else several, indent=2) + "\n")


def print_plan(plan: Plan, console: Console) -> None:
    """Prints memory, work, communication and time of a stage."""
    chip = plan.topology.chip
    console.print(
        f"{plan.topology}: {describe(plan.program.assembly.mesh)}; compiled in {plan.compiled.seconds:.0f} s", soft_wrap=True
    )
    console.print(_memory(plan))
    console.print(verdict(plan), soft_wrap=True)
    print_work(plan, console)
    console.print(_communication(plan))
    if not plan.read:
        console.print(
            "the compiled program cannot be printed: communication is worked out from the parameters alone", soft_wrap=True
        )
    times = dataclasses.asdict(plan.roofline)
    shown = ", ".join(f"{name} {seconds:.3g}" for name, seconds in times.items())
    console.print(
        f"a step takes {plan.roofline.seconds:.3g} s or more, bound by {plan.roofline.bound} (seconds: {shown})", soft_wrap=True
    )
    utilisation = plan.useful_flops / (plan.roofline.seconds * plan.topology.size * chip.flops)
    console.print(
        f"at that time {utilisation:.0%} of the chips' {chip.flops / 1e12:g} TFLOP/s would be useful work", soft_wrap=True
    )


def print_ranking(ranking: Ranking, console: Console) -> None:
    """Prints what a search has compiled, the best first; the flags below, whole, to be copied from any width."""
    table = Table("", "s a step", "bound", "GiB of a chip", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, (_, plan) in enumerate(ranking, 1):
        seconds = f"{plan.roofline.seconds:.3g}" if plan.fits else "does not fit"
        table.add_row(str(number), seconds, plan.roofline.bound, f"{plan.needed / 2**30:.2f}")
    console.print(table if ranking else "nothing that divides the rows and widths could fit", soft_wrap=True)
    for number, (candidate, _) in enumerate(ranking, 1):
        flags = " ".join(candidate.changes) or "the config as it is"
        console.print(f"{number}: {flags}", soft_wrap=True, markup=False, highlight=False)


def print_changes(candidates: list[Candidate], topology: Topology, console: Console) -> None:
    """Prints the smallest change with which a stage could fit."""
    flags = " ".join(candidates[0].changes) if candidates else ""
    bigger = f"no change of mesh, remat or accumulation makes it fit: take a larger slice than {topology}"
    console.print(f"the smallest change that could make it fit: {flags}" if flags else bigger, soft_wrap=True, markup=False)


def verdict(plan: Plan) -> str:
    """Whether the stage fits, and by how much, in one line."""
    gib, reserve = 2**30, RESERVE * plan.limit
    of = f"{plan.needed / gib:.2f} GiB of the {plan.limit / gib:.2f} GiB of a chip"
    if plan.fits:
        spare = (plan.limit - reserve - plan.needed) / gib
        return f"fits: {of}, {spare:.2f} GiB to spare beside a reserve of {RESERVE:.0%}"
    over = (plan.needed - plan.limit + reserve) / gib
    large = f"; the largest: {plan.compiled.refusal}" if plan.compiled.refusal else ""
    return f"does not fit: needs {of}, {over:.2f} GiB more than there are beside a reserve of {RESERVE:.0%}{large}"


def print_work(plan: Plan, console: Console) -> None:
    """The FLOPs of a step, useful and done, and how far the count in the program is from those on paper."""
    useful, hardware = plan.useful_flops, plan.hardware_flops
    apart = plan.counted / hardware - 1
    console.print(
        f"{useful / 1e12:,.2f} TFLOP of a step are useful, {hardware / 1e12:,.2f} are done "
        f"({plan.counted / 1e12:,.2f} counted in the program, {apart:+.3%})",
        soft_wrap=True,
    )


def _memory(plan: Plan) -> Table:
    table = Table("bytes of a chip", "GiB", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[1].justify = "right"
    memory = plan.compiled.memory
    rows = {"limit": plan.limit, f"reserve, {RESERVE:.0%}": RESERVE * plan.limit, "needed": plan.needed}
    if memory is not None:
        rows = {
            "arguments: state, frozen parameters, batch": memory.arguments,
            "of them given back in place: the state": memory.aliased,
            "temporary": memory.temporary,
            "peak": memory.peak,
            "in the host's memory": memory.host,
            "limit": plan.limit,
        }
    for name, size in rows.items():
        table.add_row(name, f"{size / 2**30:.3f}")
    return table


def _communication(plan: Plan) -> Table:
    columns = ("collective", "over", "dtype", "in the program", "in a step", "MiB from a chip")
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in (3, 4, 5):
        table.columns[column].justify = "right"
    for each in plan.collectives[:MANY]:
        counts = (str(each.count), str(each.executions)) if plan.read else ("", "")
        table.add_row(each.kind, " × ".join(each.axes), each.dtype, *counts, f"{each.bytes / 2**20:,.1f}")
    rest = plan.collectives[MANY:]
    if rest:
        table.add_row(f"{len(rest)} other kinds", "", "", "", "", f"{sum(each.bytes for each in rest) / 2**20:,.1f}")
    return table
