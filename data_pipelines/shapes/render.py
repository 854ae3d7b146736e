"""Pictures of scenes: 36×36 RGB, anti-aliased shapes on a light, slightly noisy background."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.shapes.scene import COLOURS, GRID, Scene

SIZE = 36
_CELL = SIZE / GRID
_SCALE = 4  # supersampling
_RADIUS, _RADIUS_SPREAD, _JITTER, _COLOUR_SPREAD = 4.6, 0.1, 1.0, 12
_BACKGROUND, _NOISE = (235, 247), 8  # noise is added: 235–255 in all


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corner points of a shape; of a circle, those of its bounding box."""
    match shape:
        case "circle":
            return [(x - radius, y - radius), (x + radius, y + radius)]
        case "square":
            half = 0.88 * radius
            return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
        case "triangle":
            far = 1.15 * radius
            side, low = far * math.cos(math.pi / 6), y + far / 2
            return [(x, y - far), (x + side, low), (x - side, low)]
        case _:
            half = 1.2 * radius
            return [(x, y - half), (x + half, y), (x, y + half), (x - half, y)]


def render(scene: Scene) -> bytes:
    """Draws a scene.

    Returns:
      A PNG file of 36×36 RGB pixels; a pure function of the scene.
    """
    numbers = scene.random("picture")
    background = tuple(numbers.randint(*_BACKGROUND) for _ in range(3))
    image = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), background)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        radius = _RADIUS * numbers.uniform(1 - _RADIUS_SPREAD, 1 + _RADIUS_SPREAD)
        x = _CELL * (thing.column + 0.5) + numbers.uniform(-_JITTER, _JITTER)
        y = _CELL * (thing.row + 0.5) + numbers.uniform(-_JITTER, _JITTER)
        fill = tuple(max(0, value + numbers.randint(-_COLOUR_SPREAD, _COLOUR_SPREAD)) for value in COLOURS[thing.colour])
        points = [(px * _SCALE, py * _SCALE) for px, py in _outline(thing.shape, x, y, radius)]
        (draw.ellipse if thing.shape == "circle" else draw.polygon)(points, fill=fill)
    pixels = np.asarray(image.reduce(_SCALE))
    noise = np.random.Generator(np.random.PCG64(numbers.getrandbits(64))).integers(0, _NOISE + 1, pixels.shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels + noise).save(file, "PNG", compress_level=1)
    return file.getvalue()
