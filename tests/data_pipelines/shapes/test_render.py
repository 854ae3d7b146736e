"""Pictures show what the scene says: read back from the pixels alone."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from data_pipelines.shapes.render import SIZE, render
from data_pipelines.shapes.scene import COLOURS, SHAPES, SPLITS, Scene, Thing, draw_scene


def pixels(scene):
    image = Image.open(io.BytesIO(render(scene)))
    assert image.format == "PNG" and image.mode == "RGB" and image.size == (SIZE, SIZE)
    return np.asarray(image).astype(int)


def nearest_colour(rgb):
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - rgb).max())


@pytest.mark.parametrize("split", SPLITS)
def test_every_place_shows_its_object_or_the_background(split):
    for index in range(60):
        scene = draw_scene(split, index)
        image = pixels(scene)
        things = {(thing.row, thing.column): thing for thing in scene.things}
        for row in range(3):
            for column in range(3):
                centre = image[12 * row + 5 : 12 * row + 8, 12 * column + 5 : 12 * column + 8]
                if (row, column) in things:
                    colour, rgb = things[row, column].colour, np.median(centre, axis=(0, 1))
                    assert nearest_colour(rgb) == colour and np.abs(rgb - COLOURS[colour]).max() <= 12 + 8
                else:
                    assert centre.min() >= 235


def test_background_is_light_and_noisy():
    image = pixels(Scene("train", 5, ()))
    spread = image.max((0, 1)) - image.min((0, 1))
    assert image.min() >= 235 and (spread == 8).all()
    assert len(np.unique(image[..., 0])) == 9


def test_areas_and_outlines_tell_the_shapes_apart():
    area, above, corner = {}, {}, {}
    for shape in SHAPES:
        image = np.mean([pixels(Scene("train", index, (Thing(shape, "black", 1, 1),))) for index in range(60)], axis=(0, 3))
        light, black = image[:5].mean(), 30 + 4  # noise adds 4 on average
        dark = (light - image) / (light - black)
        area[shape] = dark.sum()
        above[shape] = dark[14].sum() / dark[20].sum()  # widths 3.5 pixels above and 2.5 below the centre
        corner[shape] = dark[14, 14]
    radius2 = 4.6**2 * (1 + 0.1**2 / 3)
    expected = {"circle": np.pi, "square": 4 * 0.88**2, "triangle": 3 * 3**0.5 / 4 * 1.15**2, "diamond": 2 * 1.2**2}
    for shape in SHAPES:
        assert area[shape] == pytest.approx(expected[shape] * radius2, rel=0.12)
    assert above["triangle"] < 0.5 < 0.6 < min(above["circle"], above["square"], above["diamond"])
    assert corner["square"] > 0.6 > 0.2 > corner["diamond"]


def test_a_picture_is_a_pure_function_of_its_scene():
    assert render(draw_scene("test", 4)) == render(draw_scene("test", 4)) != render(draw_scene("test", 5))
    things = draw_scene("test", 4).things
    assert render(Scene("test", 4, things)) != render(Scene("train", 4, things))


def test_two_thousand_scenes_a_second():
    scenes = [draw_scene("train", index) for index in range(300)]
    start = time.process_time()
    for scene in scenes:
        render(scene)
    assert time.process_time() - start < 300 / 2000 * 5  # five times the usual, for busy machines
