"""Captions and questions say what the scene holds: every answer is recomputed from the objects by other code."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from data_pipelines.shapes import describe
from data_pipelines.shapes.language import KINDS, ask_questions, caption
from data_pipelines.shapes.scene import HELD_OUT, SPLITS, Scene, Thing, draw_scene
from mmjax.types import Part


def scene_of(*pairs):
    return Scene("test", 0, tuple(Thing(shape, colour, *divmod(place, 3)) for place, (colour, shape) in enumerate(pairs)))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("red", "diamond")], "a red diamond"),
        ([("red", "circle"), ("blue", "square"), ("red", "circle")], "two red circles and a blue square"),
        (
            [("red", "square"), ("black", "square"), ("green", "circle")],
            "a green circle, a black square and a red square",
        ),
        ([("black", "triangle")] * 6, "six black triangles"),
        (
            [("blue", "diamond"), ("red", "circle"), ("blue", "diamond"), ("red", "circle"), ("black", "circle")],
            "two red circles, two blue diamonds and a black circle",
        ),
    ],
)
def test_captions(pairs, words):
    assert caption(scene_of(*pairs)) == words


def true_answer(question, things):
    """Answers a question by brute force over the objects."""
    shapes, colours = [t.shape for t in things], [t.colour for t in things]
    if match := re.fullmatch(r"How many (\w+)s are there\?", question):
        return str(len(things) if match[1] == "object" else shapes.count(match[1]))
    if match := re.fullmatch(r"How many (\w+) shapes are there\?", question):
        return str(colours.count(match[1]))
    if match := re.fullmatch(r"Is there a (\w+) (\w+)\?", question):
        return "yes" if (match[2], match[1]) in zip(shapes, colours, strict=True) else "no"
    if match := re.fullmatch(r"What color is the (\w+)\?", question):
        (answer,) = [t.colour for t in things if t.shape == match[1]]
        return answer
    (colour,) = re.fullmatch(r"What shape is the (\w+) one\?", question).groups()
    (answer,) = [t.shape for t in things if t.colour == colour]
    return answer


@pytest.mark.parametrize("split", SPLITS)
def test_six_different_questions_with_true_answers(split):
    kinds, exists = Counter(), Counter()
    for index in range(800):
        scene = draw_scene(split, index)
        questions = ask_questions(scene)
        assert len(questions) == len({question.text for question in questions}) == 6
        for question in questions:
            assert question.answer == true_answer(question.text, scene.things)
            kinds[question.kind] += 1
            exists[question.answer] += question.kind == "exists"
        unique_shape = any(count == 1 for count in Counter(t.shape for t in scene.things).values())
        asked = {question.kind for question in questions}
        assert {"count_shape", "count_colour", "count_all", "exists"} <= asked and ("colour" in asked) == unique_shape
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 0.9 * 800
    assert abs(exists["yes"] / (exists["yes"] + exists["no"]) - 0.5) < 0.06


def test_training_never_names_a_held_out_pair_and_testing_does():
    names = [f"{colour} {shape}" for shape, colour in HELD_OUT]
    said = {split: "" for split in SPLITS}
    for split in SPLITS:
        for index in range(800):
            scene = draw_scene(split, index)
            said[split] += " | ".join([caption(scene), *(question.text for question in ask_questions(scene))])
    assert not any(name in said["train"] for name in names)
    assert all(f"Is there a {name}?" in said["test"] and f"Is there a {name}?" in said["pairs"] for name in names)


def test_the_example_of_a_scene():
    scene = draw_scene("pairs", 3)
    (example,) = describe(scene)
    questions = ask_questions(scene)
    assert example.id == "shapes/pairs/000003" and example.meta["caption"] == caption(scene)
    assert [turn.role for turn in example.turns] == ["user", "assistant"] * 6
    assert [turn.text for turn in example.turns] == [text for question in questions for text in question[1:]]
    assert example.turns[0].parts[0] == Part(medium=0) and sum(len(turn.media) for turn in example.turns) == 1
    assert example.meta["kinds"] == [question.kind for question in questions]
    assert example.meta["objects"] == [[t.shape, t.colour, t.row, t.column] for t in scene.things]
