"""A run's results on the terminal: by kind of question and ten answered pictures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmjax.evaluation.workdir import Evaluated, read_run
from mmjax.types.terminal import make_console


def print_summary(workdir: str | Path, console: Console | None = None) -> None:
    """Prints what `eval/` of a workdir holds.

    Args:
      workdir: of a run.
      console: where to; default the terminal.
    """
    console = console or make_console()
    run = read_run(workdir)
    if not run.evaluations:
        console.print(f"{workdir} holds no evaluation yet")
        return
    console.print(_kinds(run.evaluations))
    shown = next((one for one in run.evaluations if one.pictures), None)
    if shown is not None:
        console.print(_pictures(shown))
    console.print(Text(f"report: {Path(workdir) / 'report.html'}"))


def _kinds(evaluations: list[Evaluated]) -> Table:
    """A row per kind of question; a column per evaluation, and one for its control."""
    table = Table("kind", title="results × 100")
    columns = []
    for one in evaluations:
        columns.append((f"{one.name}, {one.numbers['metric'].replace('_', ' ')}", one.numbers["by_kind"], one.value))
        if one.control is not None:
            columns.append(
                (f"{one.name}, pictures {one.numbers['control']['name']}", one.numbers["control"]["by_kind"], one.control)
            )
    for name, _, _ in columns:
        table.add_column(Text(name), justify="right")
    for kind in sorted({kind for _, by_kind, _ in columns for kind in by_kind}):
        table.add_row(
            Text(kind), *(f"{100 * by_kind[kind]['mean']:.1f}" if kind in by_kind else "" for _, by_kind, _ in columns)
        )
    table.add_section()
    table.add_row("all", *(f"{100 * value:.1f}" for _, _, value in columns), style="bold")
    return table


def _pictures(one: Evaluated) -> Table:
    table = Table("picture", "question", "answer", "", title=f"answered pictures of {one.name}")
    for line in one.pictures:
        truth = " / ".join(dict.fromkeys(line["answers"]))
        marks = {True: Text("✓", style="green"), False: Text(f"✗ {truth}", style="red"), None: Text(truth)}
        table.add_row(Text(line["id"]), Text(line["question"]), Text(line["prediction"] or "(nothing)"), marks[line["correct"]])
    return table
