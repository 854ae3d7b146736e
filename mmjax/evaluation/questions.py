"""What a model is asked: the questions of a data set, each an Example of its own, and the same ones without their pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from mmjax.data.exchanges import captions_of, single_questions
from mmjax.evaluation.config import EvaluationOptions
from mmjax.types import Example, Medium, Part, Source, Turn, UserError
from mmjax.types.model import Model

Media = Callable[[Source, int, int], tuple[Medium, ...]]  # (source, index of an example, examples) -> the media to show


def questions_of(example: Example, options: EvaluationOptions) -> list[Example]:
    """The questions that an evaluation asks about an example, with the answers to compare with.

    Every user turn is a question, answered by the assistant turn after it; with `prompt`, or of captions, all there is to
    ask about an example is that prompt, and what it accepts are the example's answers or captions.
    """
    captions = options.task == "caption"
    if not captions and not options.prompt:
        return single_questions(example)
    shown = tuple(Part(medium=index) for index in range(len(example.media)))
    said = (Part(text=options.prompt),) if options.prompt else ()
    answers = captions_of(example) if captions else example.answers
    return [dataclasses.replace(example, turns=(Turn("user", (*shown, *said)),) if said else (), answers=answers)]


def questions(source: Source, count: int, options: EvaluationOptions, media: Media | None = None) -> Iterator[Example]:
    """Every question of the first `count` examples, in order.

    Args:
      source: the examples.
      count: how many of them are asked about.
      options: of the evaluation.
      media: shows other media than the examples' own (`swapped_media`, `blank_media`).

    Raises:
      UserError: a question without an answer.
    """
    for index in range(count):
        example = source[index]
        if media is not None:
            example = dataclasses.replace(example, media=media(source, index, count))
        for question in questions_of(example, options):
            if not question.answers:
                raise UserError(
                    f"example {question.id!r} has no answer to compare with; give it an assistant turn or `answers`"
                )
            yield question


def control_media(control: str, model: Model) -> Media:
    """The media that a control shows: of the next example whose media differ, or blank ones."""
    return swapped_media if control == "swapped" else blank_media(model)


def swapped_media(source: Source, index: int, count: int) -> tuple[Medium, ...]:
    """The media of the next example that has as many, and others.

    Raises:
      UserError: there is none.
    """
    own = source[index]
    for step in range(1, count):
        other = source[(index + step) % count].media
        if len(other) == len(own.media) > 0 and list(map(_bytes, other)) != list(map(_bytes, own.media)):
            return other
    raise UserError(f"example {own.id!r}: no other example has other media to swap with; set control=''")


def blank_media(model: Model) -> Media:
    """Pictures of one colour, the mean that the model's image encoder subtracts, in the place of all pictures.

    Raises:
      UserError: the model has no image encoder; later, an example without media, or with other media than pictures.
    """
    encoders = getattr(model.definition.bind(model.parameters), "encoders", {})
    if "image" not in encoders:
        raise UserError("control='blank' shows pictures of one colour, but the model reads none; set control=''")
    colour = np.round(255 * np.asarray(encoders["image"].config.mean)).astype(np.uint8)
    size = model.processor.image_size
    picture = Medium("image", np.broadcast_to(colour, (size, size, 3)).copy())

    def media(source: Source, index: int, count: int) -> tuple[Medium, ...]:
        own = source[index]
        if not own.media or any(medium.kind != "image" for medium in own.media):
            raise UserError(f"example {own.id!r}: control='blank' replaces pictures, and only them; set control=''")
        return (picture,) * len(own.media)

    return media


def _bytes(medium: Medium) -> bytes:
    return medium.data if isinstance(medium.data, bytes) else medium.data.tobytes()
