"""What holds for every decoder, whatever its family."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers.parameters import Definition, define

VOCAB = 19


@functools.cache
def made(module: Any, config: Any) -> tuple[Definition, dict[str, jax.Array]]:
    """A definition and random parameters, scaled up so that hidden states are of order one."""
    definition = define(module(config))
    parameters = jax.jit(definition.initialise)(jax.random.key(0))
    draw = np.random.default_rng(0)
    return definition, {
        path: value + 0.2 * draw.normal(size=value.shape).astype(np.float32) for path, value in parameters.items()
    }


def rows() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, positions and segments of two prompts, the second padded by three on the left."""
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, 8))
    segments = np.array([[1] * 8, [0] * 3 + [1] * 5])
    return jnp.asarray(tokens), jnp.asarray(np.maximum(np.cumsum(segments, 1) - 1, 0)), jnp.asarray(segments)


def cache_equals_whole(module: Any, config: Any) -> None:
    """Reading a prompt, then token by token, gives what one pass gives."""
    definition, parameters = made(module, config)
    tokens, positions, segments = rows()

    @jax.jit
    def whole(parameters):
        llm = definition.bind(parameters)
        return llm(llm.embed(tokens), positions, segments)[0]

    @jax.jit
    def piece(parameters, cache, tokens, positions, segments):
        llm = definition.bind(parameters)
        return llm(llm.embed(tokens), positions, segments, cache)

    expected = whole(parameters)
    cache = definition.bind(parameters).init_cache(2, 11)  # room that stays empty must not be seen
    got = []
    for begin, end in ((0, 5), (5, 6), (6, 7), (7, 8)):
        part = slice(begin, end)
        hidden, cache = piece(parameters, cache, tokens[:, part], positions[:, part], segments[:, part])
        got.append(hidden)
    assert int(cache.index) == 8
    np.testing.assert_allclose(np.concatenate(got, 1)[np.asarray(segments) > 0], expected[segments > 0], atol=2e-5)


def packing_changes_nothing(module: Any, config: Any) -> None:
    """Two texts in one row, with padding, are each what they are alone."""
    definition, parameters = made(module, config)
    tokens, _, _ = rows()
    first, second = tokens[0, :3], tokens[1, :4]

    @jax.jit
    def hidden(parameters, tokens, positions, segments):
        llm = definition.bind(parameters)
        return llm(llm.embed(tokens), positions, segments)[0]

    def alone(tokens):
        return hidden(parameters, tokens[None], np.arange(len(tokens))[None], np.ones((1, len(tokens)), int))[0]

    packed = jnp.concatenate([first, second, jnp.zeros(1, int)])[None]
    positions, segments = np.array([[0, 1, 2, 0, 1, 2, 3, 0]]), np.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    together = hidden(parameters, packed, positions, segments)[0]
    np.testing.assert_allclose(together[:3], alone(first), atol=2e-5)
    np.testing.assert_allclose(together[3:7], alone(second), atol=2e-5)
    assert np.isfinite(together).all()


def padded_vocabulary_is_never_chosen(module: Any, config: Any) -> None:
    """Logits are float32, and −inf beyond the vocabulary."""
    definition, parameters = made(module, config)
    logits = definition.bind(parameters).logits(jnp.ones((2, config.width), jnp.bfloat16))
    assert logits.dtype == jnp.float32 and logits.shape == (2, 128)
    assert np.isneginf(logits[:, VOCAB:]).all() and np.isfinite(logits[:, :VOCAB]).all()


def depth_adds_no_leaf_and_no_equation(module: Any, make_config: Any) -> None:
    """The program is as long at 48 layers as at 12."""
    programs = []
    for layers in (12, 48):
        definition = define(module(make_config(layers)))
        ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)

        def loss(parameters, tokens, definition=definition):
            llm = definition.bind(parameters)
            return llm(llm.embed(tokens), tokens, tokens)[0].sum()

        program = str(jax.make_jaxpr(jax.grad(loss))(definition.abstract(), ids))
        programs.append((len(definition.specs), program.count("\n")))
    assert programs[0] == programs[1]


def depth_hardly_lengthens_the_program(module: Any, make_config: Any) -> None:
    """What the compiler is given for 32 layers, reading into a cache, is less than a fifth longer than for 5."""
    lengths = []
    for layers in (5, 32):
        definition = define(module(make_config(layers)))
        ids = jax.ShapeDtypeStruct((2, 1), jnp.int32)

        @jax.jit
        def step(parameters, tokens, bind=definition.bind):
            llm = bind(parameters)
            hidden, cache = llm(llm.embed(tokens), tokens, tokens, llm.init_cache(2, 8))
            return llm.logits(hidden), cache

        lengths.append(len(step.lower(definition.abstract(), ids).as_text()))
    assert lengths[0] <= lengths[1] < 1.2 * lengths[0]
