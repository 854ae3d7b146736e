"""The pictures of LLaVA's inputs: which soft token stands at each placeholder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.media.tiles import NEWLINE, Tiling
from mmjax.interop.placeholders import placeholder_id, placeholder_key
from mmjax.systems.parts import part_config, soft_tokens
from mmjax.types import UserError

Arrays = dict[str, np.ndarray]
Config = Mapping[str, Any]
Parts = Mapping[str, Mapping[str, Any]]


def with_soft_index(arrays: Arrays, config: Config, parts: Parts) -> Arrays:
    """The inputs with the pictures of all rows one after the other.

    Args:
      arrays: as LLaVA's classes take them.
      config: config.json of the model.
      parts: of the model, with every field.

    Returns:
      The inputs, where there are pictures with pixel_values [tiles 3 height width] and soft_index [placeholders]: which soft
      token of all tiles stands at each placeholder, read row by row.

    Raises:
      UserError: pictures, sizes and placeholders differ in number.
    """
    pixels, pictures, index = arrays.get("pixel_values"), 0, np.zeros(0, np.int32)
    arrays = {name: value for name, value in arrays.items() if name != "pixel_values"}
    if pixels is not None and len(pixels):
        if parts["connectors.image"]["newline"]:
            pictures = len(arrays.get("image_sizes", ()))
            pixels, index = _tiles(pixels, arrays.get("image_sizes"), config, parts)
        else:
            pictures = len(pixels)
            index = np.arange(pictures * soft_tokens(parts))
        arrays |= {"pixel_values": pixels, "soft_index": index}
    placeholder = placeholder_id(config)
    count = int((arrays["input_ids"] == placeholder).sum())
    if count != len(index):
        raise UserError(
            f"input_ids hold {count} placeholders ({placeholder_key(config)}={placeholder}), but {pictures} pictures make "
            f"{len(index)} soft tokens"
        )
    return arrays


def _tiles(pixels: np.ndarray, sizes: Any, config: Config, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """The tiles of all pictures [tiles 3 height width], and the soft tokens that stand for them, the newline last of all."""
    if sizes is None:
        raise UserError("inputs lack image_sizes, (height, width) of each picture before it was cut into tiles")
    vision = part_config("encoders.image", parts["encoders.image"])
    tiling = Tiling(tuple(map(tuple, config["image_grid_pinpoints"])), vision.image_size, vision.grid)
    pictures = [(int(height), int(width)) for height, width in sizes]
    counts = [tiling.count(*picture) for picture in pictures]
    if pixels.ndim == 5:
        if len(pixels) != len(pictures) or max(counts) > pixels.shape[1]:
            raise UserError(
                f"pixel_values: expected the {counts} tiles of {len(pictures)} image_sizes, got {len(pixels)} pictures of "
                f"{pixels.shape[1]} tiles"
            )
        pixels = np.concatenate([tiles[:count] for tiles, count in zip(pixels, counts, strict=True)])
    if len(pixels) != sum(counts):
        raise UserError(f"pixel_values: expected the {sum(counts)} tiles of {len(pictures)} image_sizes, got {len(pixels)}")
    tokens = vision.grid**2
    firsts = np.cumsum([0, *counts[:-1]]) * tokens
    layouts = [tiling.layout(*picture) for picture in pictures]
    newline = len(pixels) * tokens
    index = [np.where(layout == NEWLINE, newline, layout + first) for layout, first in zip(layouts, firsts, strict=True)]
    return pixels, np.concatenate(index)
