"""Where a run's numbers go: `metrics.jsonl` always, TensorBoard and Weights & Biases when asked."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.types import UserError
from mmjax.types.files import replace_file

FILE = "metrics.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; one that a killed run left half-written is no line."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"stage", "step"} <= line.keys():
            lines.append(line)
    return lines


def encode(line: Mapping[str, Any]) -> str:
    """One JSON line. Floats keep all their digits; what is not finite becomes null, since JSON has no NaN."""
    clean = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}
    return json.dumps(clean) + "\n"


class Metrics:
    """The writers of a run; they do nothing on other processes than the first.

    Args:
      workdir: of the run.
      primary: whether this is the first process.
      tensorboard: write events into `<workdir>/tensorboard/<stage>`.
      wandb_project: Weights & Biases project; "" = off.
      config: the resolved config, for Weights & Biases.

    Raises:
      UserError: wandb is asked for, but not installed.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        primary: bool = True,
        tensorboard: bool = False,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self.workdir = Path(workdir)
        self._primary = primary
        self._tensorboard = tensorboard
        self._events: dict[str, Any] = {}
        self._wandb = _start_wandb(wandb_project, self.workdir, config or {}) if primary and wandb_project else None
        if primary:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._file = open(self.workdir / FILE, "a")

    def rewind(self, stages: Sequence[str], stage: str, step: int) -> int:
        """Drops what a run before this one has logged beyond the step that is resumed from.

        Args:
          stages: all stages in order; lines of later ones go too.
          stage, step: what the run goes on from.

        Returns:
          the last step of this stage that had been logged, `step` or more.
        """
        order = {name: index for index, name in enumerate(stages)}
        here = (order[stage], step)
        lines = read_lines(self.workdir / FILE)
        last = max([step, *(line["step"] for line in lines if line["stage"] == stage)])
        if self._primary:
            kept = [line for line in lines if (order.get(line["stage"], -1), line["step"]) <= here]
            self._file.close()
            replace_file(self.workdir / FILE, "".join(map(encode, kept)))
            self._file = open(self.workdir / FILE, "a")
        return last

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line at once, so that a killed run has it."""
        if not self._primary:
            return
        self._file.write(encode({"stage": stage, "step": step, "time": time.time(), **values}))
        self._file.flush()
        if self._tensorboard:
            if stage not in self._events:
                from tensorboardX import SummaryWriter

                self._events[stage] = SummaryWriter(str(self.workdir / "tensorboard" / stage), purge_step=step)
            for name, value in values.items():
                self._events[stage].add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        if self._primary:
            self._file.close()
        for events in self._events.values():
            events.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(project: str, workdir: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"--config.logging.wandb_project={project} needs Weights & Biases; install it with: pip install 'mmjax[wandb]'"
        ) from None
    # The run's id is kept, so that a resumed run goes on in the same curve.
    path = workdir / "wandb_id"
    if not path.exists():
        path.write_text(wandb.util.generate_id())
    run = wandb.init(project=project, dir=str(workdir), id=path.read_text(), resume="allow", config=dict(config))
    for stage in config.get("stages", {}):
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run
