"""Compiles what requests will need before the first one comes.

A program belongs to one shape: rows, length of the prompts, pictures, room for the answers, and whether tokens are drawn. The
dispatcher rounds these up to few sizes, and takes a shape that is there already before it compiles a closer one; so a handful
of shapes, each run for one token, serves every plain request.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from mmjax.data.batch import Item
from mmjax.data.segments import Ids, MediumSlot, Segment
from mmjax.decoding.generate import make_options, searcher_of
from mmjax.decoding.inputs import bucket
from mmjax.serving.dispatcher import SLACK, rooms, take_shape
from mmjax.serving.settings import Settings
from mmjax.systems.parts import part_config
from mmjax.types import Example, Medium
from mmjax.types.model import Model

LENGTH = 128  # tokens: shorter prompts are padded to this


def warm_up(model: Model, settings: Settings, longest: int) -> Iterator[tuple[int, int]]:
    """Compiles for prompts of up to `longest` tokens, with one picture and without where the model reads pictures.

    Args:
      model: that will be served.
      settings: of the server.
      longest: tokens of a prompt; 0 compiles nothing.

    Returns:
      An iterator over (shapes done, shapes in all); going through it does the work.
    """
    if not longest:
        return
    positions = getattr(part_config("llm", model.config["parts"]["llm"]), "max_positions", 0) or longest
    shapes = list(
        itertools.product(
            [False, True],
            rooms(settings.max_tokens),
            [0, 1] if "encoders.image" in model.config["parts"] else [0],
            _sizes(1, settings.batch_size),
            _sizes(LENGTH, bucket(min(longest, positions), 1 << 30)),
        )
    )
    for number, (draws, room, pictures, rows, length) in enumerate(shapes):
        options = make_options(model, {"max_new_tokens": room, "do_sample": draws}, settings.template)
        rows, length = take_shape(model, (options.split()[0], pictures), (rows, length))
        batch = model.processor.prompt_batch([_item(model, pictures)], rows=rows, length=length)
        searcher_of(model).compile(model.parameters, batch, options)
        yield number + 1, len(shapes)


def _sizes(smallest: int, largest: int) -> list[int]:
    """Sizes of which every one up to the largest has one at most SLACK times as large."""
    sizes = [min(smallest, largest)]
    while sizes[-1] < largest:
        sizes.append(min(sizes[-1] * SLACK, largest))
    return sizes


def _item(model: Model, pictures: int) -> Item:
    """A prompt of one token, behind black pictures."""
    processor = model.processor
    parts = (*map(MediumSlot, range(pictures)), Ids((processor.pad_id,)))
    black = Medium("image", np.zeros((processor.image_size, processor.image_size, 3), np.uint8))
    example = Example("warm-up", media=(black,) * pictures)
    return processor.item(example, Segment(parts, query="?"))
