"""The padded vocabulary."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mmjax.llms.head import padded_vocab, vocabulary_logits


def test_padding_goes_up_to_the_next_tile():
    assert [padded_vocab(vocab) for vocab in (1, 128, 129, 50272)] == [128, 128, 256, 50304]


def test_logits_are_the_product_and_minus_infinity_beyond():
    draw = np.random.default_rng(0)
    hidden, head = draw.normal(size=(2, 3, 4)).astype(np.float32), draw.normal(size=(4, 8)).astype(np.float32)
    logits = vocabulary_logits(jnp.asarray(hidden), jnp.asarray(head), 5)
    np.testing.assert_allclose(logits[..., :5], (hidden @ head)[..., :5], rtol=1e-5)
    assert np.isneginf(logits[..., 5:]).all()
