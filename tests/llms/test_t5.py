"""T5: cache, packing, vocabulary, depth and devices. Parity with transformers is in tests/interop."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.parameters import define
from mmjax.llms.t5 import T5, T5Config
from mmjax.parallel.axes import batch_sharding, shardings
from mmjax.parallel.mesh import make_mesh
from tests.llms import checks


def make_config(layers=2, **fields):
    sizes = {"decoder_layers": layers + 1, "heads": 3, "buckets": 8, "max_distance": 6, **fields}
    return T5Config(vocab=checks.VOCAB, width=16, layers=layers, head_dim=6, ffn=32, **sizes)


def ones(tokens):
    return np.ones(np.shape(tokens), np.int32)


def hidden(config, parameters, source, text, source_segments=None, segments=None):
    """Hidden states of the text; positions are not looked at."""
    source_segments = ones(source) if source_segments is None else source_segments
    segments = ones(text) if segments is None else segments

    @jax.jit
    def run(parameters, source, text, source_segments, segments):
        llm = checks.made(T5, config)[0].bind(parameters)
        encoded = llm.encode(llm.embed(source), source_segments, source_segments)
        return llm(llm.embed(text), segments, segments, source=encoded)[0]

    return run(parameters, *map(jnp.asarray, (source, text, source_segments, segments)))


def tokens(*shape):
    return np.random.default_rng(2).integers(0, checks.VOCAB, shape)


@pytest.mark.parametrize(
    "fields", [{}, pytest.param({"gated": False, "activation": "relu", "tied": True, "scaled": True}, marks=pytest.mark.heavy)]
)
def test_cache_equals_whole(fields):
    """Reading a padded prompt, then token by token, gives what one pass gives; room that stays empty is not seen."""
    config = make_config(**fields)
    definition, parameters = checks.made(T5, config)
    text, positions, segments = checks.rows()
    source, source_segments = tokens(2, 9), np.array([[1] * 9, [1] * 5 + [0] * 4])
    expected = hidden(config, parameters, source, text, source_segments, segments)

    @jax.jit
    def begin(parameters):
        llm = definition.bind(parameters)
        encoded = llm.encode(llm.embed(jnp.asarray(source)), jnp.asarray(source_segments), jnp.asarray(source_segments))
        return llm.init_cache(2, 11, source=encoded)

    @jax.jit
    def piece(parameters, cache, tokens, positions, segments):
        llm = definition.bind(parameters)
        return llm(llm.embed(tokens), positions, segments, cache)

    cache, got = begin(parameters), []
    for first, last in ((0, 5), (5, 6), (6, 7), (7, 8)):
        part = slice(first, last)
        states, cache = piece(parameters, cache, text[:, part], positions[:, part], segments[:, part])
        got.append(states)
    assert int(cache.own.index) == 8 and cache.source_keys.shape == (config.decoder_layers, 2, 9, 3, 6)
    np.testing.assert_allclose(np.concatenate(got, 1)[np.asarray(segments) > 0], expected[segments > 0], atol=2e-5)


def test_packing_changes_nothing():
    """Two pairs of source and text in one row, with padding, are each what they are alone."""
    config = make_config()
    _, parameters = checks.made(T5, config)
    source, text = tokens(9), tokens(8)[::-1].copy()
    together = hidden(
        config, parameters, source[None], text[None],
        np.array([[1] * 3 + [2] * 5 + [0]]), np.array([[1] * 4 + [2] * 3 + [0]]),
    )[0]  # fmt: skip
    first = hidden(config, parameters, source[None, :3], text[None, :4])[0]
    second = hidden(config, parameters, source[None, 3:8], text[None, 4:7])[0]
    np.testing.assert_allclose(together[:4], first, atol=2e-5)
    np.testing.assert_allclose(together[4:7], second, atol=2e-5)
    assert np.isfinite(together).all()


@pytest.mark.parametrize("tied", [False, True])
def test_padded_vocabulary_is_never_chosen(tied):
    checks.padded_vocabulary_is_never_chosen(T5, make_config(tied=tied))


def test_depth_adds_no_leaf_and_no_equation():
    programs = []
    for layers in (12, 48):
        definition = define(T5(make_config(layers)))
        ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)

        def loss(parameters, ids, definition=definition):
            llm = definition.bind(parameters)
            return llm(llm.embed(ids), ids, ids, source=llm.encode(llm.embed(ids), ids, ids))[0].sum()

        program = jax.jit(jax.grad(loss)).lower(definition.abstract(), ids).as_text()
        programs.append((len(definition.specs), program.count("\n")))
    assert programs[0] == programs[1]


@pytest.mark.parametrize("mesh", [pytest.param({"fsdp": 8}, marks=pytest.mark.heavy), {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_equals_unsharded(mesh):
    config = make_config(heads=4)
    definition, parameters = checks.made(T5, config)
    mesh = make_mesh(mesh)
    placed = jax.device_put(parameters, shardings(definition.specs, mesh))
    rows = jax.device_put((tokens(8, 9), tokens(8, 7)), batch_sharding(mesh))
    np.testing.assert_allclose(hidden(config, placed, *rows), hidden(config, parameters, *rows), atol=2e-5)


def test_float16_weights_compute_in_float32():
    """A residual stream beyond 65,504, the largest float16, stays finite, as it has to in the larger released models."""
    definition, parameters = checks.made(T5, make_config())
    half = {path: value.astype(jnp.float16) for path, value in parameters.items()}
    half["encoder.layers.mlp.down.kernel"] *= 2000
    assert np.isfinite(hidden(make_config(), half, tokens(1, 5), tokens(1, 4))).all()


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("small", 76_961_152), ("base", 247_577_856), ("large", 783_150_080), ("xl", 2_849_757_184), ("xxl", 11_135_332_352)],
)
def test_released_sizes(size, parameters):
    specs = define(T5(getattr(T5Config, size)())).specs
    assert sum(math.prod(spec.shape) for spec in specs.values()) == parameters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "tanh"}, "activation='tanh' is unknown; there are gelu"),
        ({"buckets": 3}, "buckets=3 must be 4 or more"),
        ({"buckets": 32, "max_distance": 16}, "max_distance=16 must be above buckets / 2 = 16"),
    ],
)
def test_sizes_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)
