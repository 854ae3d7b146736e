"""The Q-Former: who sees whom, many questions about one image, and maps that are a distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.connectors.qformer import QFormer, QFormerConfig
from mmjax.layers.parameters import define

CONFIG = QFormerConfig(
    width=16, layers=4, heads=2, ffn=32, queries=3, encoder_width=12, output_width=10, vocab=20, max_positions=8, stage1=True,
    projection=6,
)  # fmt: skip
DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(2, 2, 5, 12)).astype(np.float32)
TOKENS = DRAW.integers(0, 20, (2, 3, 6)).astype(np.int32)
MASK = np.arange(6) < np.array([[6, 4, 5], [3, 6, 2]])[..., None]
MEDIUM = np.array([[0, 1, 1], [1, 0, 0]])


@pytest.fixture(scope="module")
def apply():
    definition = define(QFormer(CONFIG))
    parameters = jax.jit(definition.initialise)(jax.random.key(0))
    draw = np.random.default_rng(1)
    parameters = {path: value + 0.2 * draw.normal(size=value.shape).astype(np.float32) for path, value in parameters.items()}

    def run(*args, method="__call__", **how):
        @jax.jit
        def call(parameters, arrays):
            outputs = getattr(definition.bind(parameters), method)(*arrays, **how)
            return outputs if method == "connect" else (outputs.queries, outputs.text, outputs.maps)

        return call(parameters, args)

    return run


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_each_question_sees_its_own_image_and_no_other(apply):
    together = apply(FEATURES, MEDIUM, TOKENS, MASK, method="connect")
    assert together.shape == (2, 9, 10)
    for row in range(2):
        for question in range(3):
            image = FEATURES[row, MEDIUM[row, question]][None, None]
            alone = apply(image, None, TOKENS[row, question][None, None], MASK[row, question][None, None], method="connect")
            close(together[row, 3 * question : 3 * question + 3], alone[0])


def test_many_questions_about_one_image_are_each_alone(apply):
    one = FEATURES[:, :1]
    together = apply(one, np.zeros((2, 3), int), TOKENS, MASK, method="connect")
    for question in range(3):
        alone = apply(one, None, TOKENS[:, question : question + 1], MASK[:, question : question + 1], method="connect")
        close(together[:, 3 * question : 3 * question + 3], alone)


def test_padding_of_a_question_is_not_seen(apply):
    other = np.where(MASK, TOKENS, (TOKENS + 7) % 20)
    assert (other != TOKENS).any()
    close(apply(FEATURES, MEDIUM, TOKENS, MASK)[0], apply(FEATURES, MEDIUM, other, MASK)[0])


def test_the_question_changes_the_soft_tokens(apply):
    other = apply(FEATURES, MEDIUM, (TOKENS + 1) % 20, MASK)[0]
    assert np.abs(apply(FEATURES, MEDIUM, TOKENS, MASK)[0] - other).max() > 0.01


def test_causal_queries_are_blind_to_the_text_and_text_to_its_future(apply):
    full = np.ones_like(MASK)
    queries, text, _ = apply(FEATURES, MEDIUM, TOKENS, full, direction="causal")
    close(queries, apply(FEATURES, MEDIUM)[0])
    changed = TOKENS.copy()
    changed[..., 4:] = (changed[..., 4:] + 3) % 20
    _, later, _ = apply(FEATURES, MEDIUM, changed, full, direction="causal")
    close(text[..., :4, :], later[..., :4, :])
    assert np.abs(text[..., 4:, :] - later[..., 4:, :]).max() > 0.01
    _, other_image, _ = apply(FEATURES[::-1], MEDIUM, TOKENS, full, direction="causal")
    assert np.abs(text - other_image).max() > 1e-3


def test_text_alone_needs_no_image(apply):
    queries, text, _ = apply(None, None, TOKENS, MASK)
    assert queries is None and text.shape == (2, 3, 6, 16)


@pytest.mark.parametrize("media", [1, 2])
def test_maps_are_distributions_over_the_patches_of_each_question_s_image(apply, media):
    medium = MEDIUM if media == 2 else np.zeros_like(MEDIUM)
    maps = apply(FEATURES[:, :media], medium, TOKENS, MASK, maps=True)[2]
    assert maps.shape == (2, 3, 3, 5)
    close(maps.sum(-1), np.ones((2, 3, 3)))
    alone = apply(FEATURES[1:, medium[1, 1]][:, None], None, TOKENS[1:, 1:2], MASK[1:, 1:2], maps=True)[2]
    close(maps[1, 1], alone[0, 0])


def test_caption_logits_are_float32_over_the_words():
    definition = define(QFormer(CONFIG))
    module = definition.bind(definition.initialise(jax.random.key(0)))
    logits = module.caption_logits(jnp.ones((2, 3, 16), jnp.bfloat16))
    assert logits.shape == (2, 3, 20) and logits.dtype == jnp.float32


def test_no_text_branch_means_no_text():
    definition = define(QFormer(QFormerConfig(width=16, layers=2, heads=2, ffn=32, queries=3, encoder_width=12)))
    assert not any("text" in path or "word" in path for path in definition.specs)
    module = definition.bind(definition.initialise(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"no text branch \(vocab=0\)"):
        module(jnp.asarray(FEATURES), None, jnp.asarray(TOKENS), jnp.asarray(MASK))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 3}, "layers=3 is not a multiple of frequency=2"),
        ({"heads": 7}, "width=768 is not a multiple of heads=7"),
        ({"stage1": True}, "stage1=True needs the text branch"),
    ],
)
def test_sizes_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        QFormerConfig(**fields)


def test_sizes_of_blip2_are_the_published_ones():
    def count(prefix="", **fields):
        specs = define(QFormer(QFormerConfig(**fields))).specs
        return sum(int(np.prod(spec.shape)) for path, spec in specs.items() if path.startswith(prefix))

    norm = 2 * 768
    assert count("layers") + norm == 105_137_664
    assert count("layers", vocab=30523) + norm == 161_825_280
