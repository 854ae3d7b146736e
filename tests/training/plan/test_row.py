"""The plan of a stage: sizes of the published models from shapes alone, and a row of data that people can read."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from launch.command import load_config
from mmjax.data.batch import BatchShape, Item, assemble
from mmjax.data.processor import Processor
from mmjax.data.templates import TEMPLATES
from mmjax.training.plan.program import batch_shapes
from mmjax.training.plan.row import missing_data, runs_of, show_row
from mmjax.training.plan.show import show, stage_parts
from mmjax.training.stage import Experiment
from mmjax.types import Example, Medium, Part, Turn
from mmjax.types.config import from_config
from tests.data.pieces import make_pieces


def experiment(spec: str) -> Experiment:
    return from_config(Experiment, load_config(spec), spec)


def test_the_parts_of_llava_at_its_published_size():
    """LLaMA-7B has 6,738,415,616 parameters and LLaVA-1.5's connector 20,979,712; nothing of them is made."""
    run = experiment("experiments/llava/finetune.py")
    (stage,) = run.stages.values()
    table = stage_parts(run, stage)
    assert abs(table["llm"].parameters - 6_738_415_616) < 1_000_000  # rows for a placeholder and padding
    assert table["connectors.image"].parameters == table["connectors.image"].trainable == 20_979_712
    assert table["encoders.image"].trainable == 0
    assert table["llm"].forward_flops > 2 * 6.5e9 * stage.data.rows * stage.data.length
    shapes = batch_shapes(stage)
    assert shapes.text.tokens.shape == (stage.data.rows, stage.data.length)


def test_without_data_the_plan_says_what_is_missing(tmp_path, monkeypatch):
    run = experiment("experiments/llava/finetune.py:tiny")
    (name,) = run.stages
    monkeypatch.chdir(tmp_path)
    assert missing_data(run, run.stages[name])[0] == "data/shapes"
    out = io.StringIO()
    show(run, [name], None, console=Console(file=out, width=120))
    assert "no row is shown: data/shapes" in out.getvalue()
    assert f"stages.{name}.data.longest = 0" in out.getvalue() and "connectors.image" in out.getvalue()


def test_a_row_shows_its_segments_images_and_what_is_learnt():
    processor = Processor(make_pieces(), soft_tokens=5, image_size=4)
    picture = Medium("image", np.zeros((4, 4, 3), np.uint8))
    turns = (Turn("user", (Part(medium=0), Part("Why?"))), Turn("assistant", (Part("No."),)))
    examples = [Example("a", media=(picture,), turns=turns), Example("b", turns=(Turn("user", (Part("So?"),)), turns[1]))]
    segments = [processor.tokenise(TEMPLATES["vicuna_v1"](one)[0]) for one in examples]
    blank = {0: np.zeros((1, 4, 4, 3), np.uint8)}
    items = [Item(one.id, (segment,), blank) for one, segment in zip(examples, segments, strict=True)]
    shape = BatchShape(rows=1, length=300, media=1, queries=0, query_length=0, soft_tokens=5, image_size=4)
    batch = assemble([items], shape)
    first, second = ((number, line.plain) for number, line in show_row(batch, processor))
    assert first[0] == 1 and first[1].endswith("USER: <image×5> \nWhy? ASSISTANT:⟦ No.</s>⟧")
    assert second[0] == 2 and second[1].endswith("USER: So? ASSISTANT:⟦ No.</s>⟧") and "<image" not in second[1]
    runs = runs_of(batch.text, batch.feature_index)
    assert sum(len(run.positions) for run in runs) == 300 and runs[-1].segment == 0
    learnt = sum(len(run.positions) for run in runs if run.learnt)
    assert learnt == (batch.text.loss_weights > 0).sum()
