"""Text encoders: what padding may do, where texts end, released sizes, depth. Parity with transformers is in tests/interop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.encoders.text import TextConfig, TextEncoder
from mmjax.layers.parameters import define


def make_config(**fields):
    return TextConfig(**{"vocab": 19, "width": 12, "layers": 2, "heads": 2, "ffn": 20, "max_positions": 9, **fields})


def encoder(config):
    definition = define(TextEncoder(config))
    return definition.bind(definition.initialise(jax.random.key(0)))


TOKENS = jnp.asarray([[5, 7, 3, 9, 0, 0], [4, 3, 6, 3, 8, 2]])
MASK = jnp.asarray([[True] * 4 + [False] * 2, [True] * 6])


@pytest.mark.parametrize("fields", [{}, {"padding_id": 0}, {"post_norm": False, "causal": True, "pooling": "end"}])
def test_padding_changes_no_text(fields):
    tower = encoder(make_config(**fields))
    alone = tower(TOKENS[:1, :4])
    np.testing.assert_allclose(tower(TOKENS, MASK)[:1, :4], alone, atol=1e-5)
    np.testing.assert_allclose(tower.embedding(TOKENS, MASK)[0], tower.embedding(TOKENS[:1, :4])[0], atol=1e-5)


def test_a_causal_tower_is_blind_to_what_follows():
    tower = encoder(make_config(causal=True))
    other = TOKENS.at[:, 4:].set(11)
    np.testing.assert_allclose(tower(TOKENS)[:, :4], tower(other)[:, :4], atol=1e-6)
    assert np.abs(tower(TOKENS) - tower(other))[:, 4:].max() > 0.01


@pytest.mark.parametrize(("end_id", "index"), [(3, [2, 1]), (2, [3, 4])])
def test_the_first_end_token_or_by_the_legacy_rule_the_largest_is_pooled(end_id, index):
    tower = encoder(make_config(pooling="end", end_id=end_id))
    features = tower(TOKENS)
    np.testing.assert_array_equal(tower.pool(features, TOKENS), features[jnp.arange(2), jnp.asarray(index)])


def test_roberta_counts_from_its_padding():
    tower = encoder(make_config(padding_id=0))
    assert tower._positions(TOKENS).tolist() == [[1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 5, 6]]
    assert tower.config.max_length == 8


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (TextConfig.bert_base(), 109_482_240),
        (TextConfig.bert_large(), 335_141_888),
        (TextConfig.roberta_base(), 124_645_632),
        (TextConfig.roberta_large(), 355_359_744),
    ],
)
def test_released_sizes(config, parameters):
    assert sum(int(np.prod(spec.shape)) for spec in define(TextEncoder(config)).specs.values()) == parameters


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="width=12 is not a multiple of heads=5"):
        make_config(heads=5)
    with pytest.raises(ValueError, match="activation='mish' is unknown"):
        make_config(activation="mish")


def test_depth_adds_no_leaf_and_no_equation():
    programs = []
    for layers in (12, 48):
        definition = define(TextEncoder(make_config(layers=layers)))

        def loss(parameters, definition=definition):
            return definition.bind(parameters).embedding(TOKENS, MASK).sum()

        program = str(jax.make_jaxpr(jax.grad(loss))(definition.abstract()))
        programs.append((len(definition.specs), program.count("\n")))
    assert programs[0] == programs[1]
