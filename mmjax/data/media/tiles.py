"""Pictures of any shape in tiles (AnyRes, LLaVA 1.6): the whole picture small, then its parts large.

The picture is fitted into the grid of tiles that shows most of it. Each tile is encoded by itself; of the soft tokens those
that show only the margin are left out, and a newline ends each row of the rest.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from mmjax.data.media.image import BICUBIC, Pixels

NEWLINE = -2  # stands for the newline among the numbers of soft tokens


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Args:
      grids: (height, width) in pixels of each grid, multiples of `side`. Of equally good ones the first is taken: transformers
        reads LLaVA's list, (336, 672) first, as (height, width), the original code as (width, height).
      side: of a tile, in pixels.
      patches: soft tokens along the side of a tile.
      resample: number of PIL's filter.
    """

    grids: tuple[tuple[int, int], ...]
    side: int
    patches: int
    resample: int = BICUBIC

    def __post_init__(self):
        strange = [grid for grid in self.grids if any(size < 1 or size % self.side for size in grid)]
        if strange or not self.grids:
            raise ValueError(
                f"grids must be multiples of the tile's {self.side} pixels, got {strange[0] if strange else 'none'}"
            )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The grid that shows a picture with the most pixels, of such grids the smallest, of these the first."""

        def merit(grid: tuple[int, int]) -> tuple[int, int]:
            scale = min(grid[1] / width, grid[0] / height)
            shown = min(int(width * scale) * int(height * scale), height * width)
            return shown, shown - grid[0] * grid[1]

        return max(self.grids, key=merit)

    def count(self, height: int, width: int) -> int:
        """Tiles of a picture, the whole one included."""
        rows, columns = self.grid(height, width)
        return 1 + rows * columns // self.side**2

    def cut(self, image: Pixels) -> UInt8[np.ndarray, "tiles side side 3"]:
        """The tiles of a picture: first the whole one, squeezed into a square, then the grid's in rows, on black."""
        height, width = image.shape[:2]
        rows, columns = self.grid(height, width)
        fitted = np.zeros((rows, columns, 3), np.uint8)
        inner_height, inner_width = _fit(height, width, rows, columns)
        top, left = (rows - inner_height) // 2, (columns - inner_width) // 2
        fitted[top : top + inner_height, left : left + inner_width] = self._resize(image, inner_height, inner_width)
        tiles = fitted.reshape(rows // self.side, self.side, columns // self.side, self.side, 3).swapaxes(1, 2)
        whole = self._resize(image, self.side, self.side)
        return np.concatenate([whole[None], tiles.reshape(-1, self.side, self.side, 3)])

    def layout(self, height: int, width: int) -> Int[np.ndarray, "positions"]:
        """Which soft token of a picture's tiles stands at each position: those of the whole, then rows of the grid.

        Returns:
          Numbers tile · patches² + place in the tile; NEWLINE at the end of each row.
        """
        rows, columns = (size // self.side for size in self.grid(height, width))
        numbers = np.arange(self.patches**2 * (1 + rows * columns)).reshape(-1, self.patches, self.patches)
        whole, parts = numbers[0].reshape(-1), numbers[1:].reshape(rows, columns, self.patches, self.patches)
        lines = _without_margin(parts.swapaxes(1, 2).reshape(rows * self.patches, columns * self.patches), height, width)
        ended = np.concatenate([lines, np.full((len(lines), 1), NEWLINE)], axis=1)
        return np.concatenate([whole, ended.reshape(-1)]).astype(np.int32)

    def _resize(self, image: Pixels, height: int, width: int) -> UInt8[np.ndarray, "new_height new_width 3"]:
        resized = Image.fromarray(image).resize((width, height), Image.Resampling(self.resample))
        return np.asarray(resized)


def _fit(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """The size at which a picture fills a grid in one direction, its aspect ratio kept."""
    wide, high = columns / width, rows / height
    if wide < high:
        return min(math.ceil(height * wide), rows), columns
    return rows, min(math.ceil(width * high), columns)


def _without_margin(lines: Int[np.ndarray, "r c"], height: int, width: int) -> Int[np.ndarray, "kept_r kept_c"]:
    """The part of a grid's soft tokens that shows the picture, as transformers rounds it."""
    rows, columns = lines.shape
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        return lines[margin : rows - margin]
    margin = (columns - int(round(width * (rows / height), 7))) // 2
    return lines[:, margin : columns - margin]
