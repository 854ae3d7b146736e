"""Random changes of training images: Inception's crop, and RandAugment (arXiv 1909.13719) with BLIP's operations.

Everything is drawn from a NumPy generator that the caller seeds, so an image changes in the same way wherever it is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

Pixels = UInt8[np.ndarray, "height width 3"]
Cut = UInt8[np.ndarray, "new_height new_width 3"]

ASPECT = (3 / 4, 4 / 3)
FILL = (128, 128, 128)
# At BLIP's magnitude, 5 of 10: shear as a slope, translation in pixels, rotation in degrees.
SHEAR, SHIFT, ANGLE = 0.15, 5.0, 15.0
SHARE = 0.5  # of the drawn operations that are applied


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training image is changed before it is resized.

    Args:
      crop: least and greatest share of its area that is kept; () = all of it.
      operations: drawn of RandAugment's.
    """

    crop: tuple[float, ...] = ()
    operations: int = 0

    def __call__(self, image: Pixels, numbers: np.random.Generator) -> Cut:
        """The changed image."""
        if self.crop:
            image = random_crop(image, self.crop, numbers)
        return rand_augment(image, self.operations, numbers) if self.operations else image


def random_crop(image: Pixels, shares: tuple[float, ...], numbers: np.random.Generator) -> Cut:
    """Cuts out a rectangle whose area and aspect ratio are drawn (uniformly; the ratio on a logarithmic scale).

    A draw that the image cannot hold is repeated up to ten times; then the largest middle part of a fitting ratio is taken.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * numbers.uniform(shares[0], shares[1])
        ratio = math.exp(numbers.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = numbers.integers(height - down + 1), numbers.integers(width - across + 1)
            return image[top : top + down, left : left + across]
    ratio = min(max(width / height, ASPECT[0]), ASPECT[1])
    across, down = min(width, round(height * ratio)), min(height, round(width / ratio))
    top, left = (height - down) // 2, (width - across) // 2
    return image[top : top + down, left : left + across]


def rand_augment(image: Pixels, operations: int, numbers: np.random.Generator) -> Pixels:
    """Draws operations with replacement, applies each with even odds, and with even odds in the other direction."""
    picture = Image.fromarray(image)
    for number in numbers.integers(len(OPERATIONS), size=operations):
        sign = 1 if numbers.random() < 0.5 else -1
        if numbers.random() < SHARE:
            picture = OPERATIONS[number](picture, sign)
    return np.asarray(picture)


def _moved(
    across: float = 0.0, right: float = 0.0, along: float = 0.0, down: float = 0.0
) -> Callable[[Image.Image, int], Image.Image]:
    """An affine change: output (x, y) shows input (x + across·y + right, along·x + y + down), or that with all signs turned."""

    def apply(image: Image.Image, sign: int) -> Image.Image:
        data = (1, sign * across, sign * right, sign * along, 1, sign * down)
        return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=FILL)

    return apply


def _rotated(image: Image.Image, sign: int) -> Image.Image:
    return image.rotate(sign * ANGLE, Image.Resampling.BILINEAR, fillcolor=FILL)


# At this magnitude the factor of brightness and sharpness is exactly one: the two are drawn, and change nothing.
OPERATIONS: tuple[Callable[[Image.Image, int], Image.Image], ...] = (
    lambda image, sign: image,
    lambda image, sign: ImageOps.autocontrast(image),
    lambda image, sign: ImageEnhance.Brightness(image).enhance(1.0),
    lambda image, sign: ImageEnhance.Sharpness(image).enhance(1.0),
    lambda image, sign: ImageOps.equalize(image),
    _moved(across=SHEAR),
    _moved(along=SHEAR),
    _moved(right=SHIFT),
    _moved(down=SHIFT),
    _rotated,
)
