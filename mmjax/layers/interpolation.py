"""Resizing a grid of learned positions, by the rule of torch's bicubic interpolation.

It is not the filter that resizes pictures: cubic convolution (Keys, 1981) with a = −0.75 in place of −0.5, no smoothing when
the grid shrinks, and beyond the border the border's own value.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SHARPNESS = -0.75  # a


def resize_grid(grid: Float[Array, "rows columns d"], height: int, width: int) -> Float[Array, "height width d"]:
    """A grid of vectors at another resolution, computed in float32.

    Args:
      grid: [rows, columns, d].
      height, width: rows and columns wanted.
    """
    rows, columns = cubic_matrix(grid.shape[0], height), cubic_matrix(grid.shape[1], width)
    resized = jnp.einsum("hr,rcd,wc->hwd", rows, grid.astype(jnp.float32), columns, precision="highest")
    return resized.astype(grid.dtype)


def cubic_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """The linear map from `source` to `target` equally spaced samples of a line; both cover the same length."""
    positions = (np.arange(target, dtype=np.float32) + 0.5) * np.float32(source / target) - 0.5
    left = np.floor(positions).astype(int)
    matrix = np.zeros((target, source), np.float32)
    for tap in range(-1, 3):
        nearest = np.clip(left + tap, 0, source - 1)
        np.add.at(matrix, (np.arange(target), nearest), _kernel(np.abs(positions - (left + tap))))
    return matrix


def _kernel(distance: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Keys' cubic: weight of a sample at this distance, below 2."""
    a, x = SHARPNESS, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
