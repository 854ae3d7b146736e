"""Scenes of coloured shapes: what stands where. A scene is a pure function of its split's seed and its index."""

from __future__ import annotations

import dataclasses
import itertools
import random

SHAPES = ("circle", "square", "triangle", "diamond")
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 220), "yellow": (230, 200, 30), "black": (30, 30, 30)}
Pair = tuple[str, str]
ALL_PAIRS: tuple[Pair, ...] = tuple(itertools.product(SHAPES, COLOURS))
HELD_OUT: tuple[Pair, ...] = (("diamond", "red"), ("triangle", "blue"), ("circle", "green"), ("square", "yellow"))
SEEN: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT)
GRID = 3
MOST = 6


@dataclasses.dataclass(frozen=True)
class Split:
    """How a split's scenes are drawn.

    Args:
      seed: of all its random numbers.
      scenes: how many.
      drawn: the pairs (shape, colour) that objects have.
      always: one object of every scene has one of these; () for no such rule.
      named: the pairs that questions may name.
    """

    seed: int
    scenes: int
    drawn: tuple[Pair, ...]
    always: tuple[Pair, ...]
    named: tuple[Pair, ...]


# A training question about a held-out pair could only be answered "no", which would teach exactly the wrong rule.
SPLITS = {
    "train": Split(seed=1, scenes=48_000, drawn=SEEN, always=(), named=SEEN),
    "test": Split(seed=2, scenes=800, drawn=SEEN, always=(), named=ALL_PAIRS),
    "pairs": Split(seed=3, scenes=800, drawn=ALL_PAIRS, always=HELD_OUT, named=ALL_PAIRS),
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene: its kind, and its place in the grid, rows from the top."""

    shape: str
    colour: str
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """One to six objects, each in a place of its own."""

    split: str
    index: int
    things: tuple[Thing, ...]

    def random(self, purpose: str) -> random.Random:
        """Random numbers of this scene that depend on nothing else; one independent stream per purpose."""
        return stream(self.split, self.index, purpose)


def stream(split: str, index: int, purpose: str) -> random.Random:
    """Random numbers that depend on the split's seed, the index and the purpose only."""
    return random.Random(f"{SPLITS[split].seed}/{index}/{purpose}")


def draw_scene(split: str, index: int) -> Scene:
    """The scene number `index` of a split: 1–6 objects, evenly, of evenly drawn pairs, in different places of a 3×3 grid."""
    rule, numbers = SPLITS[split], stream(split, index, "scene")
    count = numbers.randint(1, MOST)
    pairs = numbers.choices(rule.drawn, k=count)
    if rule.always:
        pairs[0] = numbers.choice(rule.always)
    places = numbers.sample(range(GRID * GRID), count)
    return Scene(split, index, tuple(Thing(*pair, *divmod(place, GRID)) for pair, place in zip(pairs, places, strict=True)))
