"""What a report reads of a run's workdir; whatever is not there yet is empty."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluation: its numbers, and its answered pictures (see `mmjax.evaluation.pictures`)."""

    name: str
    numbers: Mapping[str, Any]
    pictures: list[dict[str, Any]]

    @property
    def value(self) -> float:
        """The metric's mean."""
        return self.numbers[self.numbers["metric"]]

    @property
    def control(self) -> float | None:
        """The mean under the control, None without one."""
        control = self.numbers.get("control")
        return None if control is None else control[self.numbers["metric"]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir's records.

    Args:
      config: resolved.
      parts: rows of the parts table by part, "total" the last.
      lines: of metrics.jsonl.
      evaluations: of `eval/`, by name.
    """

    config: Mapping[str, Any]
    parts: Mapping[str, Any]
    lines: list[dict[str, Any]]
    evaluations: list[Evaluated]

    @property
    def stages(self) -> list[str]:
        """Stages with metrics, in the order in which they ran."""
        return list(dict.fromkeys(line["stage"] for line in self.lines))

    def seconds(self) -> dict[str, float]:
        """Seconds by account, over all sessions of the run; the clock of each session starts at 0."""
        total: dict[str, float] = {}
        last: dict[str, float] = {}
        for line in self.lines:
            now = {name.removeprefix("seconds/"): value for name, value in line.items() if name.startswith("seconds/")}
            if not now:
                continue
            restarted = sum(now.values()) < sum(last.values())
            for account, value in now.items():
                total[account] = total.get(account, 0.0) + value - (0.0 if restarted else last.get(account, 0.0))
            last = now
        return total


def read_run(workdir: str | Path) -> Run:
    """Reads a workdir."""
    workdir = Path(workdir)
    files = sorted(path for path in (workdir / "eval").glob("*.json") if not path.name.endswith(".pictures.json"))
    evaluations = [
        Evaluated(path.stem, numbers, _json(path.with_suffix(".pictures.json"), []))
        for path in files
        if "metric" in (numbers := _json(path, {}))
    ]
    # In the config's order; those that it does not name come last.
    config = _json(workdir / "config.json", {})
    order = {name: index for index, name in enumerate(config.get("evaluations", {}))}
    evaluations.sort(key=lambda one: order.get(one.name, len(order)))
    return Run(config, _json(workdir / "parts.json", {}), list(_lines(workdir / "metrics.jsonl")), evaluations)


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return default


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # half-written by a run that was killed
        if isinstance(line, dict) and {"stage", "step"} <= line.keys():
            yield line
