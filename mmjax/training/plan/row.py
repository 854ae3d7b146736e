"""One row of a stage's data, as people can read it: its segments, its images, and what is learnt."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from mmjax.data.processor import Processor
from mmjax.data.stream import make_stream
from mmjax.training.assembly import stage_seed
from mmjax.training.load import stage_processor
from mmjax.training.stage import Experiment, Stage
from mmjax.types import Batch
from mmjax.types import Text as Rows

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


def print_row(experiment: Experiment, stage: Stage, console: Console) -> None:
    """Prints a row of a stage's data, or what is missing for it."""
    if missing := missing_data(experiment, stage):
        return console.print(f"no row is shown: {', '.join(missing)} not there")
    processor = stage_processor(experiment, stage)
    batch = first_row(experiment, stage, processor)
    packed = f", packed from {WINDOW} examples" if stage.data.pack else ""
    console.print(f"one row of the data{packed}; {''.join(LEARNT)} is learnt:")
    for number, line in show_row(batch, processor):
        console.print(Text(f"{number:3} "), line, sep="")


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
