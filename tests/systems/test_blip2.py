"""BLIP-2 stage 1: who sees whom, equal captions, and the same loss on one device and on eight."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.systems.blip2 import belonging
from mmjax.systems.objectives import make_objective
from mmjax.systems.parts import build_definition
from mmjax.types import Batch, Media, Queries

PARTS = {
    "encoders.image": dict(family="vit", width=16, layers=1, heads=2, ffn=32, patch_size=6, image_size=12),
    "connectors.image": dict(
        family="qformer", width=16, layers=2, heads=2, ffn=32, queries=3, encoder_width=16, output_width=16,
        frequency=2, vocab=32, max_positions=16, dropout=0.0, stage1=True, projection=8, decoder_start=5,
    ),
    "llm": dict(family="opt", vocab=32, width=16, layers=1, heads=2, ffn=32, max_positions=32),
}  # fmt: skip


@pytest.fixture(scope="module")
def definition():
    return build_definition(PARTS)


@pytest.fixture(scope="module")
def parameters(definition):
    drawn = definition.initialise(jax.random.key(0))
    return {path: 2 * value if value.ndim >= 2 else value for path, value in drawn.items()}


def make_batch(rows=8, length=6):
    numbers = np.random.default_rng(0)
    tokens = numbers.integers(7, 30, (rows, 1, length)).astype(np.int32)
    tokens[:, :, 0] = 3
    mask = np.arange(length)[None, None] < numbers.integers(3, length + 1, (rows, 1, 1))
    tokens[1], mask[1] = tokens[0], mask[0]  # two equal captions
    images = numbers.integers(0, 256, (rows, 1, 12, 12, 3)).astype(np.uint8)
    queries = Queries(np.where(mask, tokens, 1), mask, np.zeros((rows, 1), np.int32))
    return Batch(media={"image": Media(images, np.ones((rows, 1), bool))}, queries={"image": queries})


def qformer(definition, parameters):
    return definition.bind(parameters).connectors["image"]


def test_causal_direction_hides_the_text_from_the_queries_and_the_future_from_the_text(definition, parameters):
    module = qformer(definition, parameters)
    numbers = np.random.default_rng(1)
    features = jnp.asarray(numbers.normal(size=(2, 1, 5, 16)), jnp.float32)
    tokens = jnp.asarray(numbers.integers(7, 30, (2, 1, 6)), jnp.int32)
    mask = jnp.ones((2, 1, 6), bool)
    changed = tokens.at[:, :, 4].set(9)
    before = module(features, None, tokens, mask, direction="causal")
    after = module(features, None, changed, mask, direction="causal")
    np.testing.assert_array_equal(before.queries, after.queries)
    np.testing.assert_array_equal(before.text[:, :, :4], after.text[:, :, :4])
    assert np.abs(np.asarray(before.text - after.text))[:, :, 4:].max() > 1e-3
    both = module(features, None, changed, mask)
    assert np.abs(np.asarray(both.queries - module(features, None, tokens, mask).queries)).max() > 1e-3
    alone = module(features)
    np.testing.assert_allclose(alone.queries, before.queries, rtol=1e-4, atol=1e-5)


def test_padding_of_the_text_is_never_seen(definition, parameters):
    module = qformer(definition, parameters)
    numbers = np.random.default_rng(2)
    features = jnp.asarray(numbers.normal(size=(1, 1, 5, 16)), jnp.float32)
    tokens = jnp.asarray(numbers.integers(7, 30, (1, 1, 6)), jnp.int32)
    mask = jnp.arange(6)[None, None] < 4
    padded = module(features, None, tokens, mask)
    short = module(features, None, tokens[:, :, :4], mask[:, :, :4])
    np.testing.assert_allclose(padded.queries, short.queries, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded.text[:, :, :4], short.text, rtol=1e-4, atol=1e-5)


def test_a_query_reads_its_own_medium(definition, parameters):
    module = qformer(definition, parameters)
    numbers = np.random.default_rng(3)
    features = jnp.asarray(numbers.normal(size=(2, 3, 5, 16)), jnp.float32)
    tokens = jnp.asarray(numbers.integers(7, 30, (2, 4, 6)), jnp.int32)
    mask = jnp.ones((2, 4, 6), bool)
    medium = jnp.asarray([[0, 2, 1, 2], [1, 1, 0, 0]])
    together = module.connect(features, medium, tokens, mask).reshape(2, 4, 3, -1)
    for b in range(2):
        for m in range(4):
            one = module.connect(features[b, medium[b, m]][None, None], None, tokens[b, m][None, None], mask[b, m][None, None])
            np.testing.assert_allclose(together[b, m], one[0], rtol=1e-4, atol=1e-5)


def losses(definition, parameters, batch, key=None):
    objective = make_objective("blip2_stage1", {}, label_smoothing=0.1, positives="captions")
    batch = jax.tree.map(jnp.asarray, batch)
    sums, metrics = jax.jit(lambda batch: objective.sums(definition.bind(parameters), batch, key))(batch)
    counts = objective.counts(batch)
    return {term: sums[term] / counts[term] for term in sums}, metrics


def test_equal_captions_are_no_negatives(definition, parameters):
    batch = make_batch()
    counts = make_objective("blip2_stage1", {}, positives="captions").counts(batch)
    assert float(counts["itm"]) == 8 + 2 * 8
    everything_equal = dataclasses.replace(
        batch,
        queries={
            "image": Queries(*(np.repeat(getattr(batch.queries["image"], f)[:1], 8, 0) for f in ("tokens", "mask", "medium")))
        },
    )
    counts = make_objective("blip2_stage1", {}, positives="captions").counts(everything_equal)
    assert float(counts["itm"]) == 8
    assert float(make_objective("blip2_stage1", {}).counts(everything_equal)["itm"]) == 3 * 8
    means, _ = losses(definition, parameters, everything_equal)
    assert all(np.isfinite(value) for value in means.values())


def test_rows_of_the_same_image_are_no_negatives(definition, parameters):
    batch = make_batch()
    media = dataclasses.replace(batch.media["image"], ids=np.asarray([[4], [7], [4], [4], [9], [7], [2], [4]], np.int32))
    same, valid = belonging(dataclasses.replace(batch, media={"image": media}), "images")
    assert valid.all() and same.sum(-1).tolist() == [4, 2, 4, 4, 1, 2, 1, 4]


def test_a_row_without_a_caption_changes_nothing(definition, parameters):
    batch = make_batch()
    queries = batch.queries["image"]
    mask = queries.mask & (np.arange(8) < 7)[:, None, None]
    cut = dataclasses.replace(batch, queries={"image": dataclasses.replace(queries, mask=mask)})
    objective = make_objective("blip2_stage1", {}, label_smoothing=0.1)
    seven = jax.tree.map(lambda leaf: leaf[:7], cut)
    whole, short = (jax.tree.map(jnp.asarray, each) for each in (cut, seven))
    assert objective.counts(whole) == objective.counts(short)
    sums = [jax.jit(lambda batch: objective.sums(definition.bind(parameters), batch, None)[0])(each) for each in (whole, short)]
    for term in ("itc", "itg"):  # matching draws its negatives
        np.testing.assert_allclose(sums[0][term], sums[1][term], rtol=1e-5)


@pytest.mark.heavy
def test_eight_devices_give_the_loss_and_gradients_of_one(definition, parameters):
    batch, key = make_batch(), jax.random.key(5)
    mesh = Mesh(np.array(jax.devices()[:8]), ("fsdp",))

    def total(parameters, batch):
        means, _ = losses(definition, parameters, batch, key)
        return sum(means.values()), means

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (one, terms), gradient = run(parameters, batch)
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("fsdp")))
    everywhere = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
    (eight, eight_terms), eight_gradient = run(everywhere, sharded)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    for term in terms:
        np.testing.assert_allclose(eight_terms[term], terms[term], rtol=1e-5)
    for path in gradient:
        difference, size = np.abs(eight_gradient[path] - gradient[path]).max(), np.abs(gradient[path]).max()
        assert difference <= 1e-4 * size + 1e-6, f"{path}: {difference} of {size}"
