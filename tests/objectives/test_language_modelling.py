"""The chunked cross-entropy against torch's, its gradients, label smoothing and logit adjustment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.objectives.language_modelling import best, cross_entropy, next_token_loss


def arrays(b=2, t=7, d=5, vocab=11):
    numbers = np.random.default_rng(0)
    hidden = numbers.normal(size=(b, t, d)).astype(np.float32)
    head = numbers.normal(size=(d, vocab)).astype(np.float32)
    targets = numbers.integers(0, vocab, (b, t)).astype(np.int32)
    weights = (numbers.random((b, t)) < 0.6).astype(np.float32) * 0.5
    return hidden, head, targets, weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(smoothing):
    hidden, head, targets, _ = arrays()
    logits = hidden @ head
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(targets), smoothing)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, logits.shape[-1]),
        torch.tensor(targets).reshape(-1).long(),
        label_smoothing=smoothing,
        reduction="none",
    )
    np.testing.assert_allclose(np.asarray(ours).reshape(-1), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_padded_vocabulary_changes_nothing():
    hidden, head, targets, _ = arrays()
    logits = jnp.asarray(hidden @ head)
    padded = jnp.pad(logits, ((0, 0), (0, 0), (0, 5)), constant_values=-jnp.inf)
    for smoothing in (0.0, 0.1):
        np.testing.assert_allclose(
            cross_entropy(padded, jnp.asarray(targets), smoothing),
            cross_entropy(logits, jnp.asarray(targets), smoothing),
            rtol=1e-6,
        )


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_neither_loss_nor_gradient(chunk):
    hidden, head, targets, weights = map(jnp.asarray, arrays())

    def loss(head, hidden):
        return next_token_loss(lambda x: x @ head, hidden, targets, weights, chunk=chunk, smoothing=0.1)

    (total, hits), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(head, hidden)
    expected = (cross_entropy(hidden @ head, targets, 0.1) * weights).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(hits, ((jnp.argmax(hidden @ head, -1) == targets) * weights).sum(), rtol=1e-6)

    def whole(head, hidden):
        return (cross_entropy(hidden @ head, targets, 0.1) * weights).sum()

    for gradient, reference in zip(gradients, jax.grad(whole, argnums=(0, 1))(head, hidden), strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-6)


def test_chunks_bound_the_logits():
    hidden, head, targets, weights = map(jnp.asarray, arrays(t=64))
    jaxpr = jax.make_jaxpr(lambda h: next_token_loss(lambda x: x @ h, hidden, targets, weights, chunk=8))(head)
    shapes = {tuple(v.aval.shape) for e in jaxpr.eqns for v in e.outvars}
    inner = str(jaxpr)
    assert (2, 64, 11) not in shapes and "2,64,11" not in inner, "the logits of all positions existed at once"
    assert "1,16,11" in inner


def test_chunks_of_which_nothing_is_learnt_are_skipped():
    """A head that counts its calls: 13 positions of 48 are learnt, wherever they stand, and fill two chunks of eight."""
    hidden, head, targets, _ = map(jnp.asarray, arrays(t=24))
    weights = jnp.asarray(np.random.default_rng(1).permutation(48).reshape(2, 24) < 13, jnp.float32)
    calls = []

    def logits(x):
        jax.debug.callback(lambda: calls.append(x.shape))
        return x @ head

    total, hits = jax.jit(lambda: next_token_loss(logits, hidden, targets, weights, chunk=4))()
    jax.effects_barrier()
    assert calls == [(1, 8, 5)] * 2
    np.testing.assert_allclose(total, (cross_entropy(hidden @ head, targets) * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(hits, ((jnp.argmax(hidden @ head, -1) == targets) * weights).sum(), rtol=1e-6)


def test_prior_is_added_in_the_loss_only():
    hidden, head, targets, weights = map(jnp.asarray, arrays())
    table = jnp.stack([jnp.zeros(11), jnp.log(jnp.full(11, 0.5)).at[3].set(0.0)])
    index = jnp.ones_like(targets)
    plain, plain_hits = next_token_loss(lambda x: x @ head, hidden, targets, weights)
    none, _ = next_token_loss(lambda x: x @ head, hidden, targets, weights, prior=(jnp.zeros_like(index), table))
    adjusted, hits = next_token_loss(lambda x: x @ head, hidden, targets, weights, prior=(index, table))
    np.testing.assert_allclose(none, plain, rtol=1e-6)
    np.testing.assert_allclose(hits, plain_hits, rtol=1e-6)
    expected = (cross_entropy(hidden @ head + table[1], targets) * weights).sum()
    np.testing.assert_allclose(adjusted, expected, rtol=1e-5)
    assert abs(float(adjusted - plain)) > 1e-3


def test_the_best_is_the_first_of_the_largest():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 4, (3, 5, 40)), jnp.float32)
    np.testing.assert_array_equal(best(logits), jnp.argmax(logits, -1))
    beyond = jnp.where(jnp.arange(40) < 30, -5.0, -jnp.inf)
    assert int(best(beyond)) == 0
