"""Scenes: reproducible, evenly drawn, and strict about the held-out pairs."""

from __future__ import annotations

from collections import Counter

import pytest

from data_pipelines.shapes.scene import ALL_PAIRS, HELD_OUT, SEEN, SPLITS, Scene, Thing, draw_scene


def pairs_of(scene):
    return {(thing.shape, thing.colour) for thing in scene.things}


def test_a_scene_depends_on_its_split_and_index_only():
    scenes = [draw_scene("train", index) for index in range(50)]
    assert scenes == [draw_scene("train", index) for index in reversed(range(50))][::-1]
    assert len(set(scene.things for scene in scenes)) > 45
    assert draw_scene("test", 3).things != draw_scene("train", 3).things


def test_a_known_scene_stays_as_it_is():
    green, red, black, yellow = (
        ("circle", "green", 1, 0),
        ("square", "red", 2, 1),
        ("square", "black", 0, 2),
        ("circle", "yellow", 0, 0),
    )
    assert draw_scene("pairs", 7) == Scene("pairs", 7, (Thing(*green), Thing(*red), Thing(*black), Thing(*yellow)))


@pytest.mark.parametrize("split", SPLITS)
def test_one_to_six_objects_in_places_of_their_own(split):
    scenes = [draw_scene(split, index) for index in range(600)]
    sizes = Counter(len(scene.things) for scene in scenes)
    assert sorted(sizes) == [1, 2, 3, 4, 5, 6] and min(sizes.values()) > 60
    for scene in scenes:
        places = {(thing.row, thing.column) for thing in scene.things}
        assert len(places) == len(scene.things) and all(0 <= row < 3 and 0 <= column < 3 for row, column in places)


def test_held_out_pairs():
    assert len(ALL_PAIRS) == 20 and len(HELD_OUT) == 4 and len(SEEN) == 16
    seen = Counter(pair for split in ("train", "test") for index in range(800) for pair in pairs_of(draw_scene(split, index)))
    assert set(seen) == set(SEEN) and min(seen.values()) > 150
    assert all(pairs_of(draw_scene("pairs", index)) & set(HELD_OUT) for index in range(800))
    assert {pair for index in range(800) for pair in pairs_of(draw_scene("pairs", index))} == set(ALL_PAIRS)


def test_sizes_of_the_splits():
    assert {name: split.scenes for name, split in SPLITS.items()} == {"train": 48_000, "test": 800, "pairs": 800}
