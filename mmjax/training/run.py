"""A whole run: every stage of an experiment in order, in a workdir that holds all there is to know about it.

The same call on the same workdir goes on where the last one ended, however that one ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.data.prefetch import prefetch
from mmjax.data.priors import count_answer_prior
from mmjax.data.processor import Processor
from mmjax.data.records import open_source
from mmjax.data.stream import make_stream
from mmjax.evaluation.evaluate import evaluate_model
from mmjax.evaluation.report import write_report
from mmjax.evaluation.summary import print_summary
from mmjax.layers.parameters import Parameters
from mmjax.parallel.hosts import held_rows, to_devices
from mmjax.parallel.mesh import describe
from mmjax.systems.objectives import make_objective
from mmjax.training import guard
from mmjax.training.assembly import Assembly, assemble, fill, first_state, stage_seed
from mmjax.training.checkpoint import Checkpoints, restore_leaves
from mmjax.training.goodput import Goodput, summary
from mmjax.training.load import load_model, make_model, stage_processor
from mmjax.training.lock import run_lock
from mmjax.training.loop import Loop, Schedule, Services, show_results
from mmjax.training.metrics import FILE, Metrics, read_lines
from mmjax.training.parts import parts_table, print_parts, step_flops, write_parts
from mmjax.training.preemption import Interrupted, Stopped, StopRequests
from mmjax.training.profile import ProfileWindow
from mmjax.training.progress import StageProgress
from mmjax.training.stage import Experiment, Stage
from mmjax.training.state import State
from mmjax.training.step import make_train_step
from mmjax.training.watchdog import Watchdog
from mmjax.training.workdir import check_config, check_processes, summarise
from mmjax.types import UserError
from mmjax.types.config import from_config, to_dict

__all__ = ["load_model", "train"]


def train(config: Any, workdir: str | Path, stage: str | None = None) -> dict[str, dict[str, Any]]:
    """Trains an experiment, or goes on with it.

    Args:
      config: an Experiment, or the mapping that a config file's `get_config` gives.
      workdir: holds config.json, parts.json, metrics.jsonl, tensorboard/, checkpoints/<stage>/<step>/, tokenizer/, eval/,
        compilation_cache/ and report.html.
      stage: train this stage only; those before it must be finished.

    Returns:
      By stage: "step", the "train" metrics of its last line, and the results of its evaluations, "eval".

    Raises:
      UserError: anything that the user can mend.
      Stopped: SIGTERM or Ctrl-C came, and the run is saved.
    """
    experiment = config if isinstance(config, Experiment) else from_config(Experiment, config)
    workdir, primary = Path(workdir), jax.process_index() == 0
    if stage is not None and stage not in experiment.stages:
        raise UserError(f"--stage={stage}: the config has the stages {', '.join(experiment.stages)}")
    with contextlib.ExitStack() as stack:
        # From here on a signal is a request, never a torn file.
        stop = stack.enter_context(StopRequests())
        # 1. One run per workdir.
        stack.enter_context(run_lock(workdir) if primary else contextlib.nullcontext())
        # What is compiled once is there for every later start, unless JAX_COMPILATION_CACHE_DIR names another place.
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
        # 2. All processes have one config, and the workdir belongs to it.
        check_processes(experiment)
        check_config(experiment, workdir, primary)
        logging_config = experiment.logging
        metrics = Metrics(
            workdir,
            primary=primary,
            tensorboard=logging_config.tensorboard,
            wandb_project=logging_config.wandb_project,
            config=to_dict(experiment),
        )
        stack.enter_context(contextlib.closing(metrics))
        goodput = Goodput()
        watchdog = stack.enter_context(
            Watchdog(
                workdir / "stacks.txt",
                logging_config.hang_seconds,
                logging_config.peer_seconds,
                doing=goodput.account,
            )
        )
        run = Run(experiment, workdir, primary, metrics, goodput, watchdog, stop)
        # 3. Whatever can be wrong with any stage without arrays is found before the first one trains.
        assemblies = [assemble(experiment, each) for each in experiment.stages.values()]
        # 4. The stages in order; what one has trained is where the next one starts.
        trained: Parameters = {}
        for assembly in assemblies:
            trained |= run.stage(assembly, trained, may_train=stage in (None, assembly.stage.name))
            if assembly.stage.name == stage:
                break
        # 5. The report.
        if primary:
            write_report(workdir)
            print_summary(workdir)
    return summarise(workdir)


@dataclasses.dataclass
class Run:
    """What the stages of a run share."""

    experiment: Experiment
    workdir: Path
    primary: bool
    metrics: Metrics
    goodput: Goodput
    watchdog: Watchdog
    stop: StopRequests

    def stage(self, assembly: Assembly, trained: Parameters, may_train: bool = True) -> Parameters:
        """Trains one stage, unless it is finished, and evaluates it, unless that is done.

        Args:
          assembly: of the stage.
          trained: what the stages before have trained.
          may_train: False = it has to be finished already.

        Returns:
          What this stage has trained.
        """
        experiment, stage, name = self.experiment, assembly.stage, assembly.stage.name
        directory = self.workdir / "checkpoints" / name
        if self.stop.received and jax.process_count() == 1:
            raise Stopped(self.stop.received, name, 0)
        # 4a. Nothing to do, if its last step is there, good and evaluated.
        if stage.steps in Checkpoints(directory, writable=False).steps() and self._evaluated(stage):
            with contextlib.suppress(UserError):  # damaged after all, said in the log: it is trained from the step before
                return restore_leaves(directory, "trainable/", assembly.shardings.__getitem__, step=stage.steps)[1]
        if not may_train:
            raise UserError(
                f"stage {name!r} is not finished in {self.workdir}; train it first, with --stage={name} or no --stage"
            )
        processor = stage_processor(experiment, stage)
        if self.primary:
            processor.save(self.workdir / "tokenizer")
        mark = self.goodput.seconds()
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(directory, keep=experiment.checkpoint.keep, writable=self.primary)
            stack.enter_context(contextlib.closing(checkpoints))
            # 4b. The newest good checkpoint, on whatever mesh it was saved, or the values before the stage.
            with self.goodput.charge("checkpoint"):
                restored = checkpoints.restore(assembly.state)
            start = restored.step if restored else 0
            state = restored.state if restored else first_state(assembly, experiment, trained)
            frozen = fill(assembly, experiment, trained, list(assembly.frozen))
            replayed = self.metrics.rewind(list(experiment.stages), name, start)
            progress = StageProgress(name, stage.steps, start, shown=self.primary)
            stack.enter_context(contextlib.closing(progress))
            services = Services(
                checkpoints=checkpoints, metrics=self.metrics, progress=progress, goodput=self.goodput,
                watchdog=self.watchdog, stop=self.stop, profile=self._profile(name),
            )  # fmt: skip
            evaluator = Evaluator(assembly, experiment, processor, frozen, self.workdir)
            if start < stage.steps:
                state = self._train(
                    assembly, services, processor, evaluator, state, frozen, restored and restored.record, replayed
                )
            # 4d. The final evaluations, on all examples.
            if not self._evaluated(stage):
                self._evaluate(services, evaluator, stage, state)
            progress.note(f"time: {summary(self.goodput.since(mark))}")
        return dict(state.trainable)

    def _train(
        self, assembly: Assembly, services: Services, processor: Processor, evaluator: Evaluator,
        state: State, frozen: Parameters, record: Mapping[str, Any] | None, replayed: int,
    ) -> State:  # fmt: skip
        """4c. The stage's data from the restored position, its compiled step, and the loop."""
        experiment, stage = self.experiment, assembly.stage
        checkpoint, start = experiment.checkpoint, int(state.step)
        prompts, table = answer_prior(stage, processor)
        objective = make_objective(**vars(stage.objective), prior=table)
        step = make_train_step(assembly.definition, stage, objective, assembly.optimizer, assembly.state, assembly.frozen)
        stream = make_stream(
            stage.data,
            processor,
            stage_seed(experiment.seed, stage.name),
            start=start,
            position=record["data"] if record else None,
            held=held_rows(assembly.mesh, stage.data.rows),
            **({"prior": prompts} if prompts else {}),
        )
        if record and record["fingerprint"] != stream.fingerprint:
            raise UserError(
                f"the data of stage {stage.name!r} are not those that the run in {self.workdir} has used up to step {start} "
                "(a data set or tokenizer has changed); restore them, or give another --workdir"
            )
        put = to_devices(assembly.mesh, stage.data.rows)
        with contextlib.closing(stream), prefetch(stream, put, stage.data.prefetch) as batches:
            with self.goodput.charge("data"):
                first = next(batches)
            if self.primary:
                with self.goodput.charge("compile"):
                    flops = step_flops(assembly.definition, stage, objective, step, assembly.state, assembly.frozen, first)
                parts = parts_table(assembly.definition, assembly.state, assembly.frozen, assembly.shardings, flops)
                write_parts(parts, self.workdir / "parts.json")
                print_parts(parts)
                services.progress.note(f"trains on {describe(assembly.mesh)}")
            loop = Loop(
                stage.name,
                lambda state, batch: step(state, frozen, batch),
                Schedule(
                    steps=stage.steps,
                    log_every=stage.log_every,
                    evaluate_every=stage.evaluate_every if stage.evaluate else 0,
                    save_every_steps=checkpoint.every_steps,
                    save_every_seconds=checkpoint.every_seconds,
                ),
                services,
                examples=stage.data.rows,
                record={"fingerprint": stream.fingerprint},
                position=batches.position,
                check=lambda metrics, step: guard.check(stage.guard, metrics, step, stage=stage.name),
                evaluate=lambda state, step: evaluator(state, final=False),
                compilations=step._cache_size,
                replayed=replayed,
            )
            if record:
                loop.resume(record)
            return loop.run(state, itertools.chain([first], batches), start=start)

    def _evaluated(self, stage: Stage) -> bool:
        """Whether the final evaluations are in the metrics."""
        lines = read_lines(self.workdir / FILE) if stage.evaluate else ()
        final = (line for line in lines if line["stage"] == stage.name and line["step"] == stage.steps)
        return not stage.evaluate or any(name.startswith("eval/") for line in final for name in line)

    def _evaluate(self, services: Services, evaluator: Evaluator, stage: Stage, state: State) -> None:
        try:
            with self.goodput.charge("evaluation"), self.watchdog.paused(), self.stop.interruptible():
                results = evaluator(state, final=True)
        except Interrupted:
            raise Stopped(self.stop.received, stage.name, stage.steps) from None
        self.metrics.write(stage.name, stage.steps, {f"eval/{name}": value for name, value in results.items()})
        services.progress.note(show_results(results))

    def _profile(self, stage: str) -> ProfileWindow:
        config = self.experiment.logging
        steps = config.profile_steps if stage == config.profile_stage else 0
        return ProfileWindow(self.workdir / "profile" / stage, config.profile_start, steps)


class Evaluator:
    """The evaluations of a stage: state -> {"<evaluation>/<metric>": value}. Compiles once for all calls."""

    def __init__(self, assembly: Assembly, experiment: Experiment, processor: Processor, frozen: Parameters, workdir: Path):
        self._assembly, self._experiment, self._processor = assembly, experiment, processor
        self._frozen, self._workdir = frozen, workdir
        self._cache: dict[Any, Any] = {}

    def __call__(self, state: State, final: bool) -> dict[str, float]:
        """Evaluates the moving average where the stage keeps one, else the parameters.

        Args:
          final: all examples, with the control, into files; otherwise the stage's `evaluate_limit` examples, numbers only.
        """
        stage, parameters = self._assembly.stage, {**self._frozen, **(state.ema or state.trainable)}
        model = make_model(self._assembly, parameters, self._processor, self._experiment, self._workdir, self._cache)
        results = {}
        for name in stage.evaluate:
            config = self._experiment.evaluations[name]
            source = config.source
            inside = {"limit": min(stage.evaluate_limit, config.limit or stage.evaluate_limit), "control": ""}
            values = evaluate_model(
                model,
                name,
                open_source(*source.place),
                template=source.template,
                workdir=self._workdir if final else None,
                data={"path": source.path, "split": source.split},
                progress=False,  # the stage's own is on the screen
                **config.options() | ({} if final else inside),
            )
            results |= {f"{name}/{metric}": value for metric, value in values.items()}
        return results


def answer_prior(stage: Stage, processor: Processor) -> tuple[dict[str, int], np.ndarray | None]:
    """Rows by prompt, and the table, where the objective asks for them."""
    floor = stage.objective.answer_prior
    if not floor:
        return {}, None
    if len(stage.data.mixture) != 1:
        flag = f"--config.stages.{stage.name}"
        raise UserError(
            f"{flag}.objective.answer_prior={floor} is counted on one data set, the mixture has {len(stage.data.mixture)}; "
            f"set it to 0, or keep one in {flag}.data.mixture"
        )
    (source,) = stage.data.mixture.values()
    counted = count_answer_prior(open_source(*source.place), source.template, processor, floor=floor)
    return counted.prompts, counted.table
