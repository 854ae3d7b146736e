"""What is said about a scene: its caption, and six questions with their answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from data_pipelines.shapes.scene import COLOURS, SHAPES, SPLITS, Pair, Scene

KINDS = ("count_shape", "count_colour", "count_all", "exists", "colour", "shape")
NUMBERS = ("a", "two", "three", "four", "five", "six")


class Question(NamedTuple):
    """A question, its answer and its kind, one of KINDS."""

    kind: str
    text: str
    answer: str


def caption(scene: Scene) -> str:
    """All objects in words, for example "two red circles and a blue square".

    Equal objects are named together, the most frequent first, ties by shape, then by colour name.
    """
    groups = Counter((thing.shape, thing.colour) for thing in scene.things)
    phrases = [
        f"{NUMBERS[count - 1]} {colour} {shape}{'s' if count > 1 else ''}"
        for (shape, colour), count in sorted(groups.items(), key=lambda group: (-group[1], group[0]))
    ]
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _candidates(scene: Scene, named: Sequence[Pair], numbers: random.Random) -> dict[str, list[Question]]:
    """Every question that may be asked, by kind, each list in random order. "exists" alternates yes and no, either first."""
    shapes = Counter(thing.shape for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    pairs = {(thing.shape, thing.colour) for thing in scene.things}
    exists = {
        "yes": [pair for pair in named if pair in pairs],
        "no": [pair for pair in named if pair not in pairs],
    }
    for choices in exists.values():
        numbers.shuffle(choices)
    first = numbers.choice((("yes", "no"), ("no", "yes")))
    questions = {
        "count_shape": [Question("count_shape", f"How many {shape}s are there?", str(shapes[shape])) for shape in SHAPES],
        "count_colour": [Question("count_colour", f"How many {c} shapes are there?", str(colours[c])) for c in COLOURS],
        "count_all": [Question("count_all", "How many objects are there?", str(len(scene.things)))],
        "colour": [
            Question("colour", f"What color is the {thing.shape}?", thing.colour)
            for thing in scene.things
            if shapes[thing.shape] == 1
        ],
        "shape": [
            Question("shape", f"What shape is the {thing.colour} one?", thing.shape)
            for thing in scene.things
            if colours[thing.colour] == 1
        ],
    }
    for choices in questions.values():
        numbers.shuffle(choices)
    asked = [(answer, pair) for both in zip(*(exists[answer] for answer in first), strict=False) for answer, pair in zip(first, both)]
    questions["exists"] = [Question("exists", f"Is there a {colour} {shape}?", answer) for answer, (shape, colour) in asked]
    return questions


def ask_questions(scene: Scene, count: int = 6) -> list[Question]:
    """Different questions about a scene: one of each kind that the scene allows, the rest from the kinds that are scarcer over all scenes.

    "What color is the circle?" needs an only circle, "What shape is the red one?" an only red object; where there is none,
    another question of these two kinds or, failing that, any other stands in.

    Args:
      scene: its split says which pairs of shape and colour may be named.
      count: how many.

    Returns:
      The questions in random order; half of those that ask whether something exists are answered yes, half no.
    """
    numbers = scene.random("questions")
    candidates = _candidates(scene, SPLITS[scene.split].named, numbers)
    chosen = [candidates[kind].pop() for kind in KINDS if candidates[kind]]
    scarce = candidates["colour"] + candidates["shape"]
    rest = candidates["count_shape"] + candidates["count_colour"] + candidates["exists"]
    numbers.shuffle(scarce)
    numbers.shuffle(rest)
    chosen = (chosen + scarce + rest)[:count]
    numbers.shuffle(chosen)
    return chosen
