"""The same model for pictures of another size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from mmjax.data.media.image import ImageTransform
from mmjax.data.media.tiles import Tiling
from mmjax.data.processor import Processor
from mmjax.encoders.vit import resize_positions
from mmjax.layers.parameters import define
from mmjax.systems.parts import build, part_config, soft_tokens
from mmjax.types import UserError
from mmjax.types.model import Model

POSITIONS = "encoders.image.position_embedding"


def with_image_size(model: Model, image_size: int) -> Model:
    """Resizes the learned positions of a model's image encoder (`mmjax.layers.interpolation`) and what prepares its pictures.

    Args:
      model: with an image encoder, without adapters.
      image_size: side of the square that the encoder is to read, in pixels.

    Returns:
      A model that shares its other weights; the model itself where it has this size.

    Raises:
      UserError: it has no image encoder.
    """
    part = model.config["parts"].get("encoders.image")
    if part is None:
        raise UserError(f"image_size={image_size} was asked of a model without image encoder")
    old = part_config("encoders.image", part)
    if old.image_size == image_size:
        return model
    parts = {**model.config["parts"], "encoders.image": {**part, "image_size": image_size}}
    grid = part_config("encoders.image", parts["encoders.image"]).grid
    positions = model.parameters[POSITIONS]
    resized = jax.device_put(resize_positions(positions, grid, grid), positions.sharding)
    processor = model.processor
    if processor is not None:
        transform = processor.transform and scaled(processor.transform, old.image_size, image_size)
        changes: dict[str, Any] = {"image_size": image_size, "transform": transform}
        if isinstance(processor, Processor):
            changes |= {"soft_tokens": soft_tokens(parts), "tiling": processor.tiling and _retiled(processor.tiling, parts)}
        processor = dataclasses.replace(processor, **changes)
    return Model(define(build(parts)), {**model.parameters, POSITIONS: resized}, processor, {**model.config, "parts": parts})


def scaled(transform: ImageTransform, old: int, new: int) -> ImageTransform:
    """The transform with all its lengths multiplied by new / old."""

    def scale(size: tuple[int, int] | int | None) -> tuple[int, int] | int | None:
        if isinstance(size, tuple):
            return round(size[0] * new / old), round(size[1] * new / old)
        return None if size is None else round(size * new / old)

    return dataclasses.replace(transform, resize=scale(transform.resize), crop=scale(transform.crop))


def _retiled(tiling: Tiling, parts: Mapping[str, Any]) -> Tiling:
    """The same numbers of tiles, of the size that the encoder reads."""
    encoder = part_config("encoders.image", parts["encoders.image"])
    grids = tuple(
        (rows // tiling.side * encoder.image_size, columns // tiling.side * encoder.image_size)
        for rows, columns in tiling.grids
    )
    return dataclasses.replace(tiling, grids=grids, side=encoder.image_size, patches=encoder.grid)
