"""BLIP-2's stage 1 against a reading of the paper in PyTorch: a BERT with queries, three masks, three losses, and gradients.

The reading computes what the paper describes, pass by pass, and shares no code with the product: pictures and captions go in,
losses and the gradient of every parameter come out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear, normalize

from mmjax.objectives.contrastive import hard_negatives
from mmjax.systems import blip2
from tests.systems.test_blip2 import PARTS, build_definition, make_batch

HEADS, QUERIES, LAYERS, DEC, EPS, SMOOTHING = 2, 3, 2, 5, 1e-12, 0.1


class Reading:
    """The Q-Former by hand, on a dict of torch tensors named as ours."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights = weights

    def linear(self, name, x, layer=None):
        kernel, bias = self.weights[f"{name}.kernel"], self.weights[f"{name}.bias"]
        return linear(x, (kernel if layer is None else kernel[0]).T, bias if layer is None else bias[0])

    def norm(self, name, x, stacked=True):
        scale, bias = self.weights[f"{name}.scale"], self.weights[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], *((scale[0], bias[0]) if stacked else (scale, bias)), eps=EPS)

    def attention(self, name, x, source, allowed=None):
        def heads(part, of):
            return self.linear(f"{name}.{part}", of, 0).unflatten(-1, (HEADS, -1)).transpose(1, 2)

        query, key, value = heads("query", x), heads("key", source), heads("value", source)
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -1e30)
        return self.linear(f"{name}.output", (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2), 0)

    def __call__(self, features, tokens, allowed):
        """Hidden states of [queries ; text]; either may be missing."""
        pieces = []
        if features is not None:
            pieces.append(self.weights["query_tokens"].expand(len(features), -1, -1))
        if tokens is not None:
            positions = self.weights["position_embedding.table"][: tokens.shape[1]]
            pieces.append(self.weights["word_embedding.table"][tokens] + positions)
        x = self.norm("norm", torch.cat(pieces, 1), stacked=False)
        queries = QUERIES if features is not None else 0
        for layer in range(LAYERS):
            name = f"layers.layers.{layer}"
            x = self.norm(f"{name}.attention_end.norm", x + self.attention(f"{name}.attention", x, x, allowed))
            seen, text = x[:, :queries], x[:, queries:]
            if queries and layer % 2 == 0:
                seen = self.norm(f"{name}.cross_end.norm", seen + self.attention(f"{name}.cross", seen, features))
            blocks = [("query", seen)] * bool(queries) + [("text", text)] * (tokens is not None)
            x = torch.cat(
                [
                    self.norm(
                        f"{name}.{kind}_end.norm",
                        h + self.linear(f"{name}.{kind}_mlp.down", gelu(self.linear(f"{name}.{kind}_mlp.up", h, 0)), 0),
                    )
                    for kind, h in blocks
                ],
                1,
            )
        return x


def losses(reading, features, tokens, mask, draws):
    """ITC, ITM and ITG as means; `draws` picks negatives from (image-to-text, text-to-image) similarities."""
    rows, length = tokens.shape
    everything = torch.ones(rows, QUERIES, dtype=torch.bool)
    alone = reading(features, None, None)
    text = reading(None, tokens, mask[:, None, :].expand(-1, length, -1))[:, 0]
    pictures = normalize(reading.linear("heads.image_projection", alone), dim=-1)
    captions = normalize(reading.linear("heads.text_projection", text), dim=-1)
    temperature = reading.weights["heads.temperature"]
    to_text = torch.einsum("iqd,td->iqt", pictures, captions.detach()).amax(1) / temperature
    to_image = torch.einsum("td,iqd->tqi", captions, pictures.detach()).amax(1) / temperature
    own = torch.arange(rows)
    itc = (cross_entropy(to_text, own, label_smoothing=SMOOTHING) + cross_entropy(to_image, own, label_smoothing=SMOOTHING)) / 2

    other_text, other_image = draws(to_text.detach().numpy(), to_image.detach().numpy())
    which_image, which_text = torch.cat([own, other_image, own]), torch.cat([own, own, other_text])
    seen = torch.cat([everything, mask], 1)[which_text]
    joint = reading(features[which_image], tokens[which_text], seen[:, None, :].expand(-1, QUERIES + length, -1))
    logits = reading.linear("heads.matching", joint[:, :QUERIES]).mean(1)
    itm = cross_entropy(logits, torch.cat([torch.ones(rows), torch.zeros(2 * rows)]).long())

    started = tokens.clone()
    started[:, 0] = DEC
    causal = torch.ones(QUERIES + length, QUERIES + length, dtype=torch.bool).tril()
    causal[:QUERIES, :QUERIES] = True
    both = torch.cat([everything, mask], 1)
    written = reading(features, started, causal[None] & both[:, None, :])[:, QUERIES:]
    hidden = self_norm(reading, gelu(reading.linear("heads.transform", written)))
    words = hidden @ reading.weights["word_embedding.table"].T + reading.weights["heads.bias"]
    targets = torch.where(mask, tokens, -100)[:, 1:]
    itg = cross_entropy(words[:, :-1].flatten(0, 1), targets.flatten(), label_smoothing=SMOOTHING, ignore_index=-100)
    return {"itc": itc, "itm": itm, "itg": itg}


def self_norm(reading, x):
    return reading.norm("heads.transform_norm", x, stacked=False)


@pytest.fixture(scope="module")
def case():
    definition = build_definition({name: part for name, part in PARTS.items()})
    parameters = {
        path: (2 * value if value.ndim >= 2 else value) for path, value in definition.initialise(jax.random.key(3)).items()
    }
    return definition, parameters, jax.tree.map(jnp.asarray, make_batch())


@pytest.mark.parametrize("term", ["itc", "itm", "itg"])
def test_loss_and_every_gradient(case, term):
    definition, parameters, batch = case

    def loss(parameters):
        sums, _ = blip2.stage1_sums(definition.bind(parameters), batch, None, smoothing=SMOOTHING, chunk=512)
        return sums[term] / blip2.stage1_counts(batch)[term]

    value, gradient = jax.jit(jax.value_and_grad(loss))(parameters)

    prefix = "connectors.image."
    weights = {
        path.removeprefix(prefix): torch.tensor(np.asarray(leaf), requires_grad=True)
        for path, leaf in parameters.items()
        if path.startswith(prefix)
    }
    features = torch.tensor(np.asarray(definition.bind(parameters).encode(batch, "image")))[:, 0]
    queries = batch.queries["image"]
    tokens, mask = torch.tensor(np.asarray(queries.tokens))[:, 0].long(), torch.tensor(np.asarray(queries.mask))[:, 0]

    def draws(to_text, to_image):
        barred = jnp.eye(len(to_text), dtype=bool)
        keys = jax.random.split(jax.random.key(0))
        return [
            torch.tensor(np.asarray(hard_negatives(key, jnp.asarray(scores), barred))).long()
            for key, scores in zip(keys, (to_text, to_image), strict=True)
        ]

    expected = losses(Reading(weights), features, tokens, mask, draws)[term]
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for name, leaf in weights.items():
        theirs = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        np.testing.assert_allclose(
            gradient[prefix + name], theirs, rtol=0, atol=5e-4 * np.abs(theirs).max() + 1e-6, err_msg=name
        )
    assert sum(leaf.grad is not None and bool(leaf.grad.abs().max() > 1e-6) for leaf in weights.values()) > 15
