"""What a stage will do, before anything is there: its parts from shapes alone, and one row of its data where there are any."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from mmjax.data.batch import BatchShape, assemble
from mmjax.data.processor import Processor
from mmjax.data.stream import make_stream
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.objectives import make_objective
from mmjax.training import assembly
from mmjax.training.assembly import stage_seed
from mmjax.training.load import stage_processor
from mmjax.training.parts import Part, parts_table, print_parts, step_flops
from mmjax.training.stage import Experiment, Stage
from mmjax.training.step import make_train_step
from mmjax.types import Batch
from mmjax.types import Text as Rows
from mmjax.types.config import to_text

WINDOW = 256  # examples from which the shown row is packed: planning a whole window takes longer than anybody waits
LEARNT = ("⟦", "⟧")  # around what has a loss


@dataclasses.dataclass(frozen=True)
class Run:
    """Neighbouring positions of a row that are shown together.

    Args:
      segment: their number, 0 = padding.
      learnt: whether they have a loss.
      image: whether soft tokens stand there.
      positions: in the row.
    """

    segment: int
    learnt: bool
    image: bool
    positions: list[int]


def print_plan(experiment: Experiment, names: list[str], console: Console | None = None) -> None:
    """Prints the resolved config, then of each of these stages the parts table and a row of its data.

    Raises:
      UserError: the parts, the rules or the data do not fit.
    """
    console = console or Console()
    chosen = dataclasses.replace(experiment, stages={name: experiment.stages[name] for name in names})
    console.print(Text(to_text(chosen)))
    for name in names:
        stage = experiment.stages[name]
        console.rule(name)
        print_parts(stage_parts(experiment, stage), console)
        if missing := missing_data(experiment, stage):
            console.print(f"no row is shown: {', '.join(missing)} not there")
        else:
            processor = stage_processor(experiment, stage)
            batch = first_row(experiment, stage, processor)
            packed = f", packed from {WINDOW} examples" if stage.data.pack else ""
            console.print(f"one row of the data{packed}; {''.join(LEARNT)} is learnt:")
            for number, line in show_row(batch, processor):
                console.print(Text(f"{number:3} "), line, sep="")


def stage_parts(experiment: Experiment, stage: Stage) -> dict[str, Part]:
    """The parts table of a stage as one device would have it, from shapes alone."""
    made = assembly.assemble(experiment, stage, make_mesh({}, jax.local_devices()[:1]))
    config = stage.objective
    objective = make_objective(
        config.name, config.weights, label_smoothing=config.label_smoothing, chunk=config.chunk, positives=config.positives
    )
    step = make_train_step(made.definition, stage, objective, made.optimizer, made.state, made.frozen)
    flops = step_flops(made.definition, stage, objective, step, made.state, made.frozen, batch_shapes(stage))
    return parts_table(made.definition, made.state, made.frozen, made.shardings, flops)


def batch_shapes(stage: Stage) -> Batch:
    """A stage's batch without its arrays."""
    names = {field.name for field in dataclasses.fields(BatchShape)}
    sizes = {name: value for name, value in vars(stage.data).items() if name in names}
    one = assemble([], BatchShape(**{**sizes, "rows": 1}))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((stage.data.rows, *leaf.shape[1:]), leaf.dtype), one)


def missing_data(experiment: Experiment, stage: Stage) -> list[str]:
    """The directories and files that a row of the stage's data is read from, and that are not there."""
    tokenizers = (experiment.tokenizers.llm, experiment.tokenizers.connector)
    wanted = (*(source.path for source in stage.data.mixture.values()), *filter(None, tokenizers))
    return [path for path in dict.fromkeys(wanted) if not Path(path).exists() and "*" not in path]


def first_row(experiment: Experiment, stage: Stage, processor: Processor) -> Batch:
    """A batch of one row of the stage's data, packed from WINDOW examples."""
    data = dataclasses.replace(stage.data, rows=1, window=min(WINDOW, stage.data.window), workers=0)
    stream = make_stream(data, processor, stage_seed(experiment.seed, stage.name))
    batch = next(stream)
    stream.close()
    return batch


def show_row(batch: Batch, processor: Processor, row: int = 0) -> Iterator[tuple[int, Text]]:
    """The segments of a row: (number, text with its images as <image×positions> and what is learnt marked).

    Of an encoder–decoder, each segment's source stands before its text.
    """
    sources = {} if batch.source is None else dict(_show(batch.source, batch.feature_index, processor, row))
    features = batch.feature_index if batch.source is None else None
    for number, line in [] if batch.text is None else _show(batch.text, features, processor, row):
        yield number, Text.assemble(sources[number], " → ", line) if number in sources else line


def _show(text: Rows, features: Any, processor: Processor, row: int) -> Iterator[tuple[int, Text]]:
    tokens = np.asarray(text.tokens[row])
    runs = runs_of(text, features, row)
    for segment, group in itertools.groupby(runs, key=lambda run: run.segment):
        line = Text()
        for run in group:
            first = run.positions[0]
            before = [] if run.image or not first else tokens[first - 1 : first].tolist()
            said = f"<image×{len(run.positions)}>" if run.image else _decode(processor, before, tokens[run.positions].tolist())
            line.append(said.join(LEARNT) if run.learnt else said, "bold green" if run.learnt else "dim" if run.image else "")
        if segment:
            yield segment, line


def runs_of(text: Rows, features: Any, row: int = 0) -> list[Run]:
    """The positions of a row in runs. A token is learnt where the position before it has a loss."""
    segments, weights = (np.asarray(values[row]) for values in (text.segments, text.loss_weights))
    learnt = np.concatenate([[False], weights[:-1] > 0])
    image = np.zeros(len(segments), bool) if features is None else np.asarray(features[row]) >= 0
    keys = list(zip(segments.tolist(), learnt.tolist(), image.tolist(), strict=True))
    groups = itertools.groupby(range(len(keys)), key=keys.__getitem__)
    return [Run(*key, list(positions)) for key, positions in groups]


def _decode(processor: Processor, before: list[int], tokens: list[int]) -> str:
    """The text of tokens within a text: one that begins with a space keeps it where another stands before."""
    head, whole, alone = (str(processor.llm.decode(ids)) for ids in (before, before + tokens, tokens))
    return whole[len(head) :] if whole.startswith(head) else alone
