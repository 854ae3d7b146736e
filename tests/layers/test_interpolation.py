"""Grids are resized as torch's bicubic interpolation resizes them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.layers.interpolation import cubic_matrix, resize_grid


@pytest.mark.parametrize(
    ("source", "target"), [((14, 14), (24, 24)), ((16, 16), (14, 9)), ((24, 24), (5, 31)), ((1, 3), (2, 7))]
)
def test_it_is_the_bicubic_of_torch(source, target):
    grid = np.random.default_rng(0).normal(size=(*source, 5)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None], size=target, mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(resize_grid(jnp.asarray(grid), *target), theirs[0].permute(1, 2, 0), atol=1e-5)


def test_a_constant_stays_and_equal_sizes_change_nothing():
    np.testing.assert_allclose(cubic_matrix(7, 12).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(cubic_matrix(6, 6), np.eye(6))


def test_the_dtype_stays():
    assert resize_grid(jnp.ones((2, 2, 3), jnp.bfloat16), 3, 3).dtype == jnp.bfloat16
