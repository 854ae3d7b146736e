"""Random changes of training images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmjax.data.media.augment import FILL, OPERATIONS, Augmentation, rand_augment, random_crop

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_crops_are_parts_of_the_picture_of_the_asked_shares():
    areas, ratios = [], []
    for seed in range(300):
        cut = random_crop(PICTURE, (0.5, 1.0), np.random.default_rng(seed))
        height, width = cut.shape[:2]
        areas.append(height * width / (40 * 60))
        ratios.append(width / height)
        corners = np.argwhere((PICTURE == cut[0, 0]).all(-1))
        assert any(np.array_equal(PICTURE[y : y + height, x : x + width], cut) for y, x in corners)
    assert 0.48 < min(areas) < 0.6 and 0.85 < max(areas) <= 1.0
    assert 0.72 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.37


@pytest.mark.parametrize("shape", [(4, 90, 3), (90, 4, 3), (1, 1, 3)])
def test_a_picture_that_holds_no_such_part_gives_its_middle(shape):
    cut = random_crop(np.zeros(shape, np.uint8), (0.9, 1.0), np.random.default_rng(0))
    assert min(cut.shape[:2]) == min(shape[:2]) and max(cut.shape[:2]) <= round(min(shape[:2]) * 4 / 3)


def test_operations():
    flat = np.full((20, 30, 3), 90, np.uint8)
    for operation in OPERATIONS:
        changed = np.asarray(operation(Image.fromarray(PICTURE), 1))
        assert changed.shape == PICTURE.shape and changed.dtype == np.uint8
    shifted = np.asarray(OPERATIONS[7](Image.fromarray(flat), -1))
    assert (shifted[:, :5] == FILL).all() and (shifted[:, 5:] == 90).all()
    assert (np.asarray(OPERATIONS[7](Image.fromarray(PICTURE), -1))[:, 5:] == PICTURE[:, :-5]).all()
    still = [
        number for number in range(10) if np.array_equal(np.asarray(OPERATIONS[number](Image.fromarray(PICTURE), 1)), PICTURE)
    ]
    assert still == [0, 1, 2, 3], "identity, brightness and sharpness by one, and the contrast of a picture that has it all"


def test_the_same_generator_makes_the_same_picture():
    changes = [rand_augment(PICTURE, 2, np.random.default_rng(seed)) for seed in (1, 1, *range(30))]
    assert np.array_equal(changes[0], changes[1]) and len({change.tobytes() for change in changes}) > 8
    whole = Augmentation((0.5, 1.0), 2)
    assert np.array_equal(whole(PICTURE, np.random.default_rng(3)), whole(PICTURE, np.random.default_rng(3)))
    assert Augmentation()(PICTURE, np.random.default_rng(0)) is PICTURE
