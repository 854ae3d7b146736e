"""Packed rows are one example a row: the same loss, the same gradients, and no token sees another example."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.batch import BatchShape, Item, assemble
from mmjax.data.media.tiles import Tiling
from mmjax.data.processor import Processor
from mmjax.data.templates import TEMPLATES
from mmjax.objectives.language_modelling import cross_entropy
from mmjax.systems.objectives import make_objective
from mmjax.systems.parts import build_definition, soft_tokens
from mmjax.types import Batch, Example, Medium, Part, Turn
from tests.data.pieces import make_pieces

PARTS = {
    "encoders.image": {
        "family": "vit", "width": 16, "layers": 3, "heads": 2, "ffn": 32, "patch_size": 4, "image_size": 8, "depth": -1,
        "pre_norm": True, "activation": "quick_gelu",
    },
    "connectors.image": {"family": "linear", "encoder_width": 16, "output_width": 24, "layers": 2},
    "llm": {"family": "llama", "vocab": 512, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48},
}  # fmt: skip
SIZES = ((8, 20), (16, 8), (9, 9))  # height, width of an example's pictures


def talk(number: int, images: int, seed: int = 0) -> Example:
    """Two questions, the first about `images` pictures."""
    draw = np.random.default_rng((number, seed))
    media = tuple(Medium("image", draw.integers(0, 256, (*size, 3), np.uint8)) for size in SIZES[:images])
    word = ("red", "blue", "square", "circle")[int(draw.integers(4))]
    turns = (
        Turn("user", (*(Part(medium=index) for index in range(images)), Part(f"what is {word}?"))),
        Turn("assistant", (Part(f"the {word} table {number}"),)),
        Turn("user", (Part("in the picture?"),)),
        Turn("assistant", (Part("Yes!" if number % 2 else "No."),)),
    )
    return Example(f"talk/{number}", media=media, turns=turns)


@dataclasses.dataclass
class World:
    """A tiny LLaVA, with pictures whole or in tiles."""

    tiled: bool

    def __post_init__(self):
        connector = {**PARTS["connectors.image"], "newline": self.tiled}
        parts = {**PARTS, "connectors.image": connector}
        self.definition = build_definition(parts)
        self.parameters = jax.jit(self.definition.initialise)(jax.random.key(0))
        tiling = Tiling(((8, 16), (16, 8), (16, 16)), 8, 2) if self.tiled else None
        self.processor = Processor(make_pieces(), soft_tokens=soft_tokens(parts), image_size=8, tiling=tiling)
        objective = make_objective("language_modelling", {})

        def loss(parameters, batch):
            return objective.sums(self.definition.bind(parameters), batch, None)[0]["text"]

        self.loss_and_gradients = jax.jit(jax.value_and_grad(loss))

    def item(self, example: Example) -> Item:
        return self.processor.item(example, TEMPLATES["vicuna_v1"](example)[0])

    def batch(self, rows: list[list[Example]], length: int, media: int) -> Batch:
        shape = BatchShape(
            rows=len(rows), length=length, media=media, queries=0, query_length=0,
            soft_tokens=self.processor.soft_tokens, image_size=8,
        )  # fmt: skip
        return jax.tree.map(jnp.asarray, assemble([list(map(self.item, row)) for row in rows], shape))

    def position_losses(self, batch: Batch) -> np.ndarray:
        """The loss of each position, 0 where nothing is learnt."""

        @jax.jit
        def losses(parameters, batch):
            module = self.definition.bind(parameters)
            return cross_entropy(module.llm.logits(module.hidden(batch)), batch.text.targets) * batch.text.loss_weights

        return np.asarray(losses(self.parameters, batch))


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.heavy)], ids=["whole", "tiles"])
def world(request):
    return World(request.param)


IMAGES = (1, 0, 3, 1, 0)  # of each example
LENGTH, SLOTS = 640, 24  # of a packed row
ROWS = [[0, 1, 2], [3, 4]]


def test_packed_and_alone_have_one_loss_and_one_gradient(world):
    examples = [talk(number, images) for number, images in enumerate(IMAGES)]
    packed = world.batch([[examples[i] for i in row] for row in ROWS], LENGTH, SLOTS)
    alone = world.batch([[example] for example in examples], 400, 15)
    assert packed.text.segments.max() == 3 and alone.text.segments.max() == 1
    assert packed.text.loss_weights.sum() == alone.text.loss_weights.sum() > 40
    loss, gradients = world.loss_and_gradients(world.parameters, packed)
    expected, theirs = world.loss_and_gradients(world.parameters, alone)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert loss / packed.text.loss_weights.sum() > 1
    scales = {path: float(jnp.abs(gradient).max()) for path, gradient in theirs.items()}
    for path, gradient in gradients.items():
        np.testing.assert_allclose(gradient, theirs[path], rtol=0, atol=1e-5 * scales[path], err_msg=path)
    # LLaVA reads features from before the encoder's last norm: nothing else is without a gradient.
    assert {path for path, scale in scales.items() if not scale} == {
        f"encoders.image.norm.{name}" for name in ("bias", "scale")
    }


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_nobody_sees_another_example(world, changed):
    """An example between others changes its pictures and its words: their losses stay as they are."""
    before = [talk(number, images) for number, images in enumerate(IMAGES[:3])]
    other = talk(changed, IMAGES[changed], seed=1)
    after = [other if number == changed else example for number, example in enumerate(before)]
    batches = [world.batch([row], LENGTH, SLOTS) for row in (before, after)]
    losses = [world.position_losses(batch)[0] for batch in batches]
    for number in range(3):
        mine = [loss[np.asarray(batch.text.segments[0]) == number + 1] for loss, batch in zip(losses, batches, strict=True)]
        if number == changed:
            assert not np.allclose(mine[0].sum(), mine[1].sum(), rtol=1e-3)
        else:
            np.testing.assert_allclose(mine[0], mine[1], rtol=1e-6, atol=1e-6)
