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
    """Every question that may be asked, by kind, each list in random order; "exists" has as many yes as no, by turns."""
    things = scene.things
    shapes, colours = Counter(thing.shape for thing in things), Counter(thing.colour for thing in things)
    present = {(thing.shape, thing.colour) for thing in things}
    exists = {"yes": [], "no": []}
    for shape, colour in named:
        answer = "yes" if (shape, colour) in present else "no"
        exists[answer].append(Question("exists", f"Is there a {colour} {shape}?", answer))
    questions = {
        "count_shape": [Question("count_shape", f"How many {shape}s are there?", str(shapes[shape])) for shape in SHAPES],
        "count_colour": [Question("count_colour", f"How many {c} shapes are there?", str(colours[c])) for c in COLOURS],
        "count_all": [Question("count_all", "How many objects are there?", str(len(things)))],
        "colour": [Question("colour", f"What color is the {t.shape}?", t.colour) for t in things if shapes[t.shape] == 1],
        "shape": [Question("shape", f"What shape is the {t.colour} one?", t.shape) for t in things if colours[t.colour] == 1],
    }
    for choices in (*questions.values(), *exists.values()):
        numbers.shuffle(choices)
    turns = numbers.sample(("yes", "no"), 2)
    return questions | {"exists": [question for both in zip(*map(exists.get, turns), strict=False) for question in both]}


def ask_questions(scene: Scene, count: int = 6) -> list[Question]:
    """Different questions about a scene, one of each kind as far as the scene allows.

    "What color is the circle?" needs an only circle, "What shape is the red one?" an only red object. Where there is none,
    another question of these two scarce kinds stands in, and failing that another count or existence.

    Args:
      scene: its split says which pairs of shape and colour may be named.
      count: how many.

    Returns:
      The questions in random order. Those that ask whether something exists are as likely answered yes as no.
    """
    numbers = scene.random("questions")
    candidates = _candidates(scene, SPLITS[scene.split].named, numbers)
    chosen = [candidates[kind].pop() for kind in KINDS if candidates[kind]]
    for stand_ins in (("colour", "shape"), ("count_shape", "count_colour", "exists")):
        left = [question for kind in stand_ins for question in candidates[kind]]
        chosen += numbers.sample(left, min(len(left), max(0, count - len(chosen))))
    numbers.shuffle(chosen)
    return chosen
