"""ITC and ITM against an independent reading in torch, gradients included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mmjax.objectives.contrastive import contrastive_loss, hard_negatives, matching_loss, normalise, similarities


def features(b=5, q=3, d=4):
    numbers = np.random.default_rng(1)
    return numbers.normal(size=(b, q, d)).astype(np.float32), numbers.normal(size=(b, d)).astype(np.float32)


def test_similarities_and_their_gradient_equal_torch():
    images, texts = features()
    temperature = np.float32(0.3)

    def loss(images, texts, temperature):
        image_to_text, text_to_image = similarities(normalise(images), normalise(texts), temperature)
        same = jnp.eye(len(texts), dtype=bool)
        valid = jnp.ones(len(texts), bool)
        return contrastive_loss(image_to_text, same, valid, 0.1) + contrastive_loss(text_to_image, same, valid, 0.1)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, (images, texts, temperature)))

    torch_arguments = [torch.tensor(x, requires_grad=True) for x in (images, texts, temperature)]
    image, text, scale = torch_arguments
    image_n, text_n = torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(text, dim=-1)
    # LAVIS gathers the keys of both directions without gradient.
    i2t = torch.einsum("iqd,td->itq", image_n, text_n.detach()).amax(-1) / scale
    t2i = torch.einsum("td,iqd->tiq", text_n, image_n.detach()).amax(-1) / scale
    labels = torch.arange(len(texts))
    reference = sum(torch.nn.functional.cross_entropy(s, labels, label_smoothing=0.1, reduction="sum") for s in (i2t, t2i))
    reference.backward()
    np.testing.assert_allclose(value, reference.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, torch_arguments, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_equal_captions_share_the_target():
    similarity = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3)), jnp.float32)
    same = jnp.asarray([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    log_p = jax.nn.log_softmax(similarity)
    expected = -(0.5 * (log_p[0, 0] + log_p[0, 1]) + 0.5 * (log_p[1, 0] + log_p[1, 1]) + log_p[2, 2])
    np.testing.assert_allclose(contrastive_loss(similarity, same, jnp.ones(3, bool), 0.0), expected, rtol=1e-6)


def test_an_empty_row_is_neither_anchor_nor_key():
    similarity = jnp.asarray(np.random.default_rng(4).normal(size=(4, 4)), jnp.float32)
    valid = jnp.asarray([1, 0, 1, 1], bool)
    rest = jnp.asarray([0, 2, 3])
    alone = contrastive_loss(similarity[rest][:, rest], jnp.eye(3, dtype=bool), jnp.ones(3, bool), 0.1)

    def loss(similarity):
        return contrastive_loss(similarity, jnp.eye(4, dtype=bool), valid, 0.1)

    value, gradient = jax.value_and_grad(loss)(similarity)
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[1].any() and not np.asarray(gradient)[:, 1].any()


def test_hard_negatives_follow_the_similarities_and_never_pick_the_same_content():
    similarity = jnp.asarray([[9.0, 0.0, 1.0], [0.0, 9.0, 9.0], [2.0, 2.0, 9.0]])
    same = jnp.asarray([[1, 0, 0], [0, 1, 1], [0, 1, 1]], bool)
    drawn = jax.vmap(lambda key: hard_negatives(key, similarity, same))(jax.random.split(jax.random.key(0), 4000))
    drawn = np.asarray(drawn)
    assert not same[np.arange(3), drawn].any()
    # Row 0 chooses between 0 and 1 with odds 1 : e.
    share = (drawn[:, 0] == 2).mean()
    assert abs(share - np.e / (1 + np.e)) < 0.03
    assert (drawn[:, 1] == 0).all()


def test_matching_loss_equals_torch():
    numbers = np.random.default_rng(3)
    logits, labels = numbers.normal(size=(6, 2)).astype(np.float32), np.array([1, 1, 0, 0, 0, 0], np.int32)
    weights = np.array([1, 1, 1, 0, 1, 1], np.float32)
    loss, right = matching_loss(*map(jnp.asarray, (logits, labels, weights)))
    each = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), reduction="none")
    np.testing.assert_allclose(loss, (each.numpy() * weights).sum(), rtol=1e-5)
    assert float(right) == ((logits.argmax(-1) == labels) * weights).sum()
