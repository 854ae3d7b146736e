"""Answered pictures for people: a few questions of an evaluation with their picture and where the connector looked."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray
from PIL import Image

from mmjax.data.media.image import decode_image
from mmjax.decoding.placement import fetch
from mmjax.evaluation.config import EvaluationOptions
from mmjax.evaluation.questions import questions_of
from mmjax.types import Batch, Example, Source
from mmjax.types.model import Model

COUNT = 10
LONGEST_SIDE = 336  # pixels of a picture in the report


def answered_pictures(
    model: Model,
    source: Source,
    count: int,
    lines: Sequence[Mapping[str, Any]],
    options: EvaluationOptions,
    template: str | None = None,
) -> list[dict[str, Any]]:
    """Picks questions and draws their pictures.

    The choice looks at no answer: pictures at equal distances through the data set, and of each the next question in turn.

    Args:
      model: the model that answered.
      source: the examples.
      count: how many of them were asked about.
      lines: the prediction lines of their questions.
      options: of the evaluation.
      template: that rendered the prompts.

    Returns:
      The lines with "image" (a PNG data URI) and "map" (rows of attention over the patches, 0…1; None = the patches are no
      square grid, or the connector is a linear one, which looks everywhere). Questions without an image are left out.
    """
    picked = pick(source, count, options)
    if not picked:
        return []
    line_of = {line["id"]: line for line in lines}
    return [
        {**line_of[question.id], "image": data_uri(question.media[0].data), "map": grid}
        for question, grid in zip(picked, attention(model, picked, template), strict=True)
    ]


def attention(model: Model, asked: Sequence[Example], template: str | None) -> list[list[list[float]] | None]:
    """Where a Q-Former looked to answer each question, as `as_grid` has it; None for other connectors."""
    if model.config["parts"]["connectors.image"]["family"] != "qformer":
        return [None] * len(asked)
    batch = model.processor.prompts(asked, template)
    compiled = model.cache.setdefault("evaluation.attention", jax.jit(lambda p, b: mean_map(model.definition.bind(p), b)))
    return [as_grid(row) for row in fetch(compiled(model.parameters, batch))]


def pick(source: Source, count: int, options: EvaluationOptions, most: int = COUNT) -> list[Example]:
    """Questions of different examples, all kinds in turn; those without an image are left out."""
    most = min(most, count)
    groups = [questions_of(source[i * count // most], options) for i in range(most)]
    picked = [group[i % len(group)] for i, group in enumerate(groups) if group]
    return [question for question in picked if question.media and question.media[0].kind == "image"]


def mean_map(module: Any, batch: Batch) -> Float[Array, "b p"]:
    """Attention of the first query slot over the patches, the mean over the learned queries."""
    return jnp.mean(module.attention_maps(batch)[:, 0], axis=1)


def as_grid(weights: Float[ndarray, "p"]) -> list[list[float]] | None:
    """Patches in row-major order as rows, scaled so that the least is 0 and the most 1."""
    side = math.isqrt(len(weights))
    if side * side != len(weights):
        return None
    span = weights.max() - weights.min()
    scaled = (weights - weights.min()) / (span if span > 0 else 1)
    return [[round(float(value), 3) for value in row] for row in scaled.reshape(side, side)]


def data_uri(data: bytes | ndarray) -> str:
    """A picture as a PNG data URI, LONGEST_SIDE at most."""
    image = Image.fromarray(np.asarray(decode_image(data)))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
