"""The training loop of one stage.

It keeps the device busy: while step k+1 is queued, the metrics of step k are fetched. The host waits for the device only to
log, save or evaluate. A resumed stage goes on from the last save with the same batches, keys and half-filled averages: what
it logs and saves is, bit for bit, what an uninterrupted run would have.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax.training.checkpoint import Checkpoints
from mmjax.training.goodput import Goodput
from mmjax.training.metrics import Metrics
from mmjax.training.preemption import Interrupted, Stopped, StopRequests
from mmjax.training.profile import ProfileWindow
from mmjax.training.progress import StageProgress
from mmjax.training.watchdog import Watchdog
from mmjax.types import UserError

log = logging.getLogger(__name__)

# Metrics that tell where a run stands rather than what a step gave: logged as they are, not averaged.
LATEST = ("learning_rate", "guard/skipped", "guard/consecutive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """When things happen.

    Args:
      steps: of the stage.
      log_every, evaluate_every: in steps; evaluate_every 0 = never inside the stage.
      save_every_steps, save_every_seconds: whichever comes first; 0 = never by that rule. The last step is always saved.
    """

    steps: int
    log_every: int = 10
    evaluate_every: int = 0
    save_every_steps: int = 0
    save_every_seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """What surrounds the loop; see the classes."""

    checkpoints: Checkpoints
    metrics: Metrics
    progress: StageProgress
    goodput: Goodput
    watchdog: Watchdog
    stop: StopRequests
    profile: ProfileWindow


class Loop:
    """The loop of one stage.

    Args:
      stage: its name.
      step: (state, batch) -> (state, metrics); metrics are scalars on the device.
      schedule, services: see their classes.
      examples: rows of a batch, for the speed.
      record: kept with every checkpoint, besides what `Loop.resume` needs.
      position: where the batch after the one taken last starts, as JSON.
      check: (metrics, step) -> None on the host, once per step; raises UserError to stop the run.
      evaluate: (state, step) -> results, by name.
      compilations: how many programs `step` has compiled so far.
      replayed: the last step that a run before this one had reached.
    """

    def __init__(
        self,
        stage: str,
        step: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
        schedule: Schedule,
        services: Services,
        *,
        examples: int = 1,
        record: Mapping[str, Any] | None = None,
        position: Callable[[], Any] | None = None,
        check: Callable[[Mapping[str, float], int], None] = lambda metrics, step: None,
        evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
        compilations: Callable[[], int] | None = None,
        replayed: int = 0,
    ):
        self.stage, self.step, self.schedule, self.services = stage, step, schedule, services
        self.examples, self.record, self.position, self.replayed = examples, dict(record or {}), position, replayed
        self.check, self.evaluate, self.compilations = check, evaluate, compilations
        self._pending: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque()
        self._window: list[dict[str, float]] = []  # metrics of the steps since the last line
        self._owed = False  # an evaluation that was due at the last step, but interrupted
        self._saved_at = time.monotonic()
        self._mark = services.goodput.seconds()
        self._marked = 0

    def resume(self, record: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint's record says of the step that it belongs to; called before `run`."""
        self._window = list(record["window"])
        self._owed = record["owed"]

    def run(self, state: Any, batches: Iterator[Any], *, start: int = 0) -> Any:
        """Trains up to the last step and saves it.

        Args:
          state: before step `start` + 1; its buffers are given away.
          batches: from number `start` on.
          start: steps done already.

        Returns:
          the last state, saved and committed.

        Raises:
          Stopped: asked to by a signal, after a committed save.
          UserError: the check says so, a save has failed, or the data have ended.
        """
        self._marked = start
        try:
            return self._run(state, batches, start)
        finally:
            self.services.profile.close()

    def _run(self, state: Any, batches: Iterator[Any], start: int) -> Any:
        services, schedule = self.services, self.schedule
        compiled = 0
        done = start
        if self._owed:
            self._evaluate(state, done)
        while done < schedule.steps:
            if signum := services.stop.poll(done):
                if done > start:
                    self._save(state, done)
                with services.goodput.charge("checkpoint"):
                    services.checkpoints.wait()
                saved = f"stopped at step {done}, saved" if done else "stopped before the first step"
                services.progress.note(f"{saved}; the same command resumes")
                raise Stopped(signum, self.stage, done)
            services.profile.before(done)
            batch = self._next(batches, done)
            with services.goodput.charge("compile" if done == start else "replay" if done < self.replayed else "step"):
                state, metrics = self.step(state, batch)
                if done == start:
                    jax.block_until_ready(metrics)
                    self._saved_at = time.monotonic()
                done += 1
                self._pending.append((done, metrics))
                self._settle(leave=1)
            services.checkpoints.poll()
            compiled = self._count_compilations(compiled, done)
            if services.profile.after(done):
                self._settle()
                services.profile.close()
            if self.evaluate is not None and schedule.evaluate_every and done % schedule.evaluate_every == 0:
                if done < schedule.steps:
                    self._evaluate(state, done)
            if self._save_due(done):
                self._save(state, done)
        self._settle()
        self._save(state, done)
        with services.goodput.charge("checkpoint"):
            services.checkpoints.wait()
        return state

    def _next(self, batches: Iterator[Any], done: int) -> Any:
        with self.services.goodput.charge("data"):
            try:
                return next(batches)
            except StopIteration:
                raise UserError(
                    f"the data of stage {self.stage!r} ended after batch {done} of {self.schedule.steps}; "
                    f"lower --config.stages.{self.stage}.steps"
                ) from None

    def _settle(self, leave: int = 0) -> None:
        """Fetches the metrics of all steps but the newest `leave`, and writes the lines that are due."""
        while len(self._pending) > leave:
            step, metrics = self._pending.popleft()
            row = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
            self.services.watchdog.beat()
            self._window.append(row)
            if row.get("guard/consecutive"):
                log.warning("stage %s step %d (batch %d): bad update skipped, %s", self.stage, step, step - 1, row)
            if step % self.schedule.log_every == 0 or step == self.schedule.steps:
                self._write_line(step)
            self._check(row, step)

    def _check(self, row: Mapping[str, float], step: int) -> None:
        try:
            self.check(row, step)
        except UserError as error:
            first = step - max(int(row.get("guard/consecutive", 1)), 1)
            raise UserError(f"{error} (batches {first} to {step - 1} of the stage, counted from 0)") from None

    def _write_line(self, step: int) -> None:
        values = {f"train/{name}": value for name, value in average(self._window).items()}
        self._window = []
        spent = self.services.goodput.since(self._mark)
        working = sum(spent[account] for account in ("data", "step", "replay"))
        # The first step is not counted: it compiled. A single one was under way before its clock started.
        steps = step - self._marked - (spent["compile"] > 0)
        if steps > 1:
            rate = steps / working
            values |= {"speed/steps_per_second": rate, "speed/examples_per_second": rate * self.examples}
        self._mark, self._marked = self.services.goodput.seconds(), step
        values |= {f"seconds/{account}": seconds for account, seconds in self._mark.items()}
        self.services.metrics.write(self.stage, step, values)
        self.services.progress.update(step, values)

    def _evaluate(self, state: Any, step: int) -> None:
        self._settle()
        self._owed = True
        try:
            with self.services.goodput.charge("evaluation"), self.services.watchdog.paused():
                with self.services.stop.interruptible():
                    results = self.evaluate(state, step) if self.evaluate else {}
        except Interrupted:
            return  # the loop's next poll saves and stops; the evaluation comes after the resume
        self._owed = False
        self.services.metrics.write(self.stage, step, {f"eval/{name}": value for name, value in results.items()})
        self.services.progress.note(f"step {step}: {show_results(results)}")

    def _save_due(self, step: int) -> bool:
        schedule = self.schedule
        if step == schedule.steps:
            return False
        if schedule.save_every_steps and step % schedule.save_every_steps == 0:
            return True
        if not schedule.save_every_seconds:
            return False
        due = time.monotonic() - self._saved_at >= schedule.save_every_seconds
        if jax.process_count() == 1:
            return due
        # Clocks differ between processes: the first one's counts, asked for as seldom as a line is written.
        if step % schedule.log_every:
            return False
        self._settle()  # two programs that talk between processes at once may wait for each other for ever, on CPUs
        return bool(multihost_utils.broadcast_one_to_all(np.array(due)))

    def _save(self, state: Any, step: int) -> None:
        self._settle()
        with self.services.goodput.charge("checkpoint"):
            position = self.position() if self.position else {"batch": step}
            record = {**self.record, "data": position, "window": self._window, "owed": self._owed}
            self.services.checkpoints.save(step, state, record)
        self._saved_at = time.monotonic()
        self.services.watchdog.beat()

    def _count_compilations(self, before: int, step: int) -> int:
        """Compiling once is the rule: a step that compiles again wastes minutes without a word."""
        count = self.compilations() if self.compilations else 0
        if before and count > before:
            log.warning("STAGE %s: STEP %d WAS COMPILED AGAIN: a shape, dtype or sharding has changed", self.stage, step)
        return count


def show_results(results: Mapping[str, float]) -> str:
    """Results for people: "test/exact_match 0.9500, …", without the breakdown by kind that the files have."""
    return ", ".join(f"{name} {value:.4f}" for name, value in results.items() if name.count("/") < 2 or "/swapped/" in name)


def average(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over steps; a step whose value is not finite (and was skipped) is left out."""
    values = {}
    for name in rows[-1] if rows else ():
        finite = [row[name] for row in rows if name in row and math.isfinite(row[name])]
        values[name] = rows[-1][name] if name in LATEST else math.fsum(finite) / len(finite) if finite else math.nan
    return values
