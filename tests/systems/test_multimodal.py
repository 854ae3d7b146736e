"""The composition: soft tokens land where the index points, and nowhere else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.systems.multimodal import place
from mmjax.systems.parts import build_definition
from mmjax.types import Batch, Media, Queries, Text, UserError

PARTS = {
    "encoders.image": {"family": "vit", "width": 12, "layers": 1, "heads": 2, "ffn": 16, "patch_size": 4, "image_size": 8},
    "connectors.image": {
        "family": "qformer", "width": 16, "layers": 2, "heads": 2, "ffn": 16, "queries": 2, "encoder_width": 12,
        "output_width": 20, "vocab": 9, "max_positions": 8,
    },
    "llm": {"family": "opt", "vocab": 11, "width": 20, "layers": 1, "heads": 2, "ffn": 16, "max_positions": 16},
}  # fmt: skip


def changed(name, **fields):
    return {**PARTS, name: {**PARTS[name], **fields}}


@pytest.fixture(scope="module")
def system():
    definition = build_definition(PARTS)
    parameters = jax.jit(definition.initialise)(jax.random.key(0))
    return definition.bind({path: value * 5 for path, value in parameters.items()})


def text(tokens):
    tokens = jnp.asarray(tokens, jnp.int32)
    ones = jnp.ones(tokens.shape, jnp.int32)
    return Text(tokens, tokens, ones.astype(jnp.float32), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), ones)


def make_batch(index, slots=2):
    """Two rows; `slots` questions about one picture each row."""
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.integers(0, 256, (2, 1, 8, 8, 3)), jnp.uint8)
    tokens = jnp.asarray(draw.integers(0, 9, (2, slots, 4)), jnp.int32)
    return Batch(
        text=text(draw.integers(0, 11, (2, len(index[0])))),
        media={"image": Media(images, jnp.ones((2, 1), bool))},
        queries={"image": Queries(tokens, jnp.ones(tokens.shape, bool), jnp.zeros((2, slots), jnp.int32))},
        feature_index=jnp.asarray(index, jnp.int32),
    )


def test_soft_tokens_stand_where_the_index_points(system):
    index = [[0, 1, -1, -1, 2, 3, -1], [-1, 3, 2, -1, -1, -1, 0]]
    batch = make_batch(index)
    soft, tokens, got = system.connect(batch, "image"), system.llm.embed(batch.text.tokens), system.embeddings(batch)
    assert soft.shape == (2, 4, 20)
    for row in range(2):
        for position, feature in enumerate(index[row]):
            expected = tokens[row, position] if feature < 0 else soft[row, feature]
            np.testing.assert_allclose(got[row, position], expected, atol=1e-5)


def test_gradient_reaches_only_what_was_placed():
    soft, tokens = jnp.ones((1, 3, 2)), jnp.ones((1, 4, 2))
    index = jnp.array([[-1, 2, 0, 2]])
    to_soft, to_tokens = jax.grad(lambda s, t: place(s, t, index).sum(), (0, 1))(soft, tokens)
    np.testing.assert_array_equal(to_soft[0, :, 0], [1, 0, 2])
    np.testing.assert_array_equal(to_tokens[0, :, 0], [1, 0, 0, 0])


def test_rows_do_not_mix(system):
    index = [[0, 1, -1, -1, 2, 3, -1]] * 2
    batch = make_batch(index)
    other = jax.tree.map(lambda x: x.at[1].set(x[0]), batch)
    np.testing.assert_allclose(system.hidden(batch)[0], system.hidden(other)[0], atol=1e-5)
    assert np.abs(system.hidden(batch)[1] - system.hidden(other)[1]).max() > 0.01


def test_a_batch_without_media_is_plain_text(system):
    batch = Batch(text=text([[1, 2, 3]]))
    np.testing.assert_array_equal(system.embeddings(batch), system.llm.embed(batch.text.tokens))
    assert system.hidden(batch).shape == (1, 3, 20)


def test_attention_maps_leave_out_the_class_token(system):
    maps = system.attention_maps(make_batch([[0, 1, -1]] * 2))
    assert maps.shape == (2, 2, 2, 4)
    assert float(maps.sum(-1).max()) < 1 + 1e-5 and float(maps.sum(-1).min()) < 0.9  # the rest went to the class token


def test_a_language_model_or_a_connector_may_stand_alone():
    assert {path.split(".")[0] for path in build_definition({"llm": PARTS["llm"]}).specs} == {"llm"}
    without = {name: part for name, part in changed("connectors.image", output_width=0).items() if name != "llm"}
    assert not any("llm" in path or ".projection" in path for path in build_definition(without).specs)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "config.parts names no llm"),
        ({**PARTS, "llms": {}}, r"config.parts.llms is no part; there are encoders.image"),
        (changed("llm", family="gpt"), "config.parts.llm.family='gpt' is unknown; there are opt, llama"),
        (changed("llm", depth=3), "config.parts.llm.depth: no such key"),
        (changed("llm", heads=3), "width=20 is not a multiple of heads=3"),
        (changed("connectors.image", encoder_width=13), "encoder_width=13 must be the encoder's width, 12"),
        (changed("connectors.image", output_width=13), "output_width=13 must be the llm's width, 20"),
        (changed("llm", embedding_width=12), "output_width=20 must be the llm's width, 12"),
        ({name: part for name, part in PARTS.items() if name != "encoders.image"}, "together, or neither"),
    ],
)
def test_parts_that_do_not_fit_are_told(parts, message):
    with pytest.raises(UserError, match=message):
        build_definition(parts)
