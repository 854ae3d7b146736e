"""The shapes data set: rendered scenes of coloured shapes, with a caption and six questions each.

Small, endless and exact: it exercises captioning and visual question answering for real, without any download. Its split
`pairs` asks for combinations of shape and colour that training never shows or names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines import builder, tokenizer
from data_pipelines.shapes.language import ask_questions, caption
from data_pipelines.shapes.render import render
from data_pipelines.shapes.scene import SPLITS, Scene, draw_scene
from mmjax.data.files.forms import conversation
from mmjax.types import Example, Medium


def draw(item: tuple[str, int]) -> Iterator[Scene]:
    """First step: the scene with this split and index."""
    yield draw_scene(*item)


def describe(scene: Scene) -> Iterator[Example]:
    """Second step: the scene's picture with its caption and its six questions and answers."""
    questions = ask_questions(scene)
    yield Example(
        id=f"shapes/{scene.split}/{scene.index:06d}",
        source=f"shapes {Shapes.VERSION}",
        media=(Medium("image", render(scene), "image/png"),),
        turns=conversation((question.text, question.answer) for question in questions),
        meta={
            "caption": caption(scene),
            "kinds": [question.kind for question in questions],
            "objects": [[thing.shape, thing.colour, thing.row, thing.column] for thing in scene.things],
        },
    )


class Shapes(builder.ExampleBuilder):
    """Scenes of one to six coloured shapes, 36×36 pixels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    description = "Rendered scenes of one to six coloured shapes with captions, questions and answers."
    steps = (draw, describe)

    def items(self) -> Mapping[str, Sequence[tuple[str, int]]]:
        return {name: [(name, index) for index in range(split.scenes)] for name, split in SPLITS.items()}


def build(out: Path, *, raw: Path | None = None, runner: builder.Runner, limit: int = 0, skips: int = 0) -> None:
    """Renders the data set into the empty directory `out`, with a word-level tokenizer of its texts in `out/tokenizer`."""
    builder.write(Shapes, out, runner=runner, limit=limit, skips=skips)
    tokenizer.build(out)


DATASETS = {"shapes": build}
