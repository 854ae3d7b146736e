"""The workdir's own story: which config it belongs to, and what its metrics say of each stage."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed

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
# Settings that may differ from host to host.
LOCAL = re.compile(r"logging\..*|stages\.[^.]+\.data\.(workers|prefetch|mixture\.[^.]+\.path)|tokenizers\..*")
KEY, SECONDS = "mmjax/config", 600  # process 0 may watch another host's lock before it speaks


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


def check_processes(experiment: Experiment, *, client: Any = None, index: int | None = None, count: int | None = None) -> None:
    """Compares the configs of all processes of a run: with different ones each would wait for another program, for ever.

    Args:
      experiment: resolved.
      client: of the key-value store; by default of `jax.distributed`.
      index, count: which process this is, and how many there are.

    Raises:
      UserError: a process has another config than process 0; the message names it and the settings. Process 0 and it say so.
    """
    index, count = (jax.process_index(), jax.process_count()) if index is None else (index, count)
    if count == 1:
        return
    client = distributed.global_state.client if client is None else client
    if index == 0:
        client.key_value_set(f"{KEY}/0", json.dumps(to_dict(experiment)), allow_overwrite=True)
        answers = [client.blocking_key_value_get(f"{KEY}/{other}", 1000 * SECONDS) for other in range(1, count)]
        answer = next(filter(None, map(json.loads, answers)), "")
    else:
        first = json.loads(client.blocking_key_value_get(f"{KEY}/0", 1000 * SECONDS))
        changes = [change for change in diff(first, to_dict(experiment)) if not LOCAL.fullmatch(change.partition(": ")[0])]
        who = f"process {index} on {socket.gethostname()} has another config than process 0"
        answer = f"{who}: {'; '.join(changes[:3])}; give all processes the same command and code" if changes else ""
        client.key_value_set(f"{KEY}/{index}", json.dumps(answer), allow_overwrite=True)
    if answer:
        raise UserError(answer)


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
