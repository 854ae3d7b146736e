"""The workdir's own story: which config it belongs to, and what its metrics say of each stage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.training.metrics import FILE, read_lines
from mmjax.training.stage import Experiment
from mmjax.types import UserError
from mmjax.types.config import diff, to_dict
from mmjax.types.files import replace_file

# Settings that may change between two calls on one workdir: they move no number of the training.
FREE = re.compile(
    r"(logging|checkpoint|evaluations)\..*"
    r"|stages\.[^.]+\.(mesh\..*|evaluate.*|data\.(workers|prefetch)|data\.mixture\.[^.]+\.(path|builder))"
    r"|tokenizers\..*"
)


def check_config(experiment: Experiment, workdir: Path, primary: bool = True) -> None:
    """Writes the resolved config into a new workdir, or compares it with the one that is there.

    Raises:
      UserError: the workdir belongs to another experiment or config; the message names the settings.
    """
    path, new = workdir / "config.json", to_dict(experiment)
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); restore it, or give another --workdir") from None
        changes = [change for change in diff(old, new) if not FREE.fullmatch(change.partition(": ")[0])]
        if changes:
            more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
            raise UserError(
                f"--workdir={workdir} holds a run of {old.get('name')!r} with another config: {'; '.join(changes[:3])}{more}. "
                "Give the config that it was started with, or another --workdir."
            )
    if primary:
        replace_file(path, json.dumps(new, indent=2) + "\n")


def summarise(workdir: Path) -> dict[str, dict[str, Any]]:
    """What the metrics say of each stage's end."""
    stages: dict[str, dict[str, Any]] = {}
    for line in read_lines(workdir / FILE):
        entry = stages.setdefault(line["stage"], {"step": 0, "train": {}, "eval": {}})
        entry["step"] = max(entry["step"], line["step"])
        for kind in ("train", "eval"):
            values = dict(_under(line, f"{kind}/"))
            entry[kind] = values or entry[kind]
    return stages


def _under(line: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    return ((name.removeprefix(prefix), value) for name, value in line.items() if name.startswith(prefix))
