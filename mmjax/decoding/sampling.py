"""Greedy decoding and sampling.

`start` reads the prompts and chooses the first token; `advance` is one compiled loop that reads a token and chooses the next
until every row has ended or the step limit is reached. The limit is an argument, so the same compiled loop runs an answer to
its end or in pieces (streaming, stop strings).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.decoding import step as steps
from mmjax.decoding.options import DecodingOptions, Knobs
from mmjax.types import Batch


class State(NamedTuple):
    """Answers in the making.

    Args:
      reader: where the language model stands.
      tokens: chosen so far, then pads.
      logprobs: log-probability of each chosen token, 0 after the end.
      top_tokens, top_logprobs: the likeliest tokens where each was chosen (k = options.top_logprobs), likeliest first.
      lengths: tokens of each answer, its end token included.
      done: rows that have ended.
      step: tokens chosen.
      seeds: each row's own.
    """

    reader: steps.Reader
    tokens: Int[Array, "b n"]
    logprobs: Float[Array, "b n"]
    top_tokens: Int[Array, "b n k"]
    top_logprobs: Float[Array, "b n k"]
    lengths: Int[Array, "b"]
    done: Bool[Array, "b"]
    step: Int[Array, ""]
    seeds: Int[Array, "b"]


def start(module: Any, batch: Batch, seeds: Int[Array, "b"], options: DecodingOptions, knobs: Knobs) -> State:
    """Reads the prompts and chooses each row's first token."""
    reader, logits = steps.prefill(module, batch, options)
    shape = (logits.shape[0], options.max_new_tokens)
    top = (*shape, min(options.top_logprobs, logits.shape[1]))
    empty = State(
        reader,
        jnp.full(shape, options.pad_token_id, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(top, jnp.int32),
        jnp.zeros(top, jnp.float32),
        jnp.zeros(shape[0], jnp.int32),
        steps.is_empty(batch),
        jnp.zeros((), jnp.int32),
        seeds,
    )
    return choose(empty, logits, options, knobs)


def choose(state: State, logits: Float[Array, "b vocab"], options: DecodingOptions, knobs: Knobs) -> State:
    """Appends one token to every row that has not ended."""
    scores = steps.process(logits, state.reader, state.step, options, knobs)
    if options.do_sample:
        tokens = jax.vmap(jax.random.categorical)(steps.row_keys(state.seeds, state.step), scores)
        logits = logits / knobs.temperature
    else:
        tokens = jnp.argmax(scores, axis=-1)
    tokens = jnp.where(state.done, options.pad_token_id, tokens).astype(jnp.int32)
    distribution = jax.nn.log_softmax(logits)
    logprobs = jnp.take_along_axis(distribution, tokens[:, None], axis=-1)[:, 0]
    top_logprobs, top_tokens = jax.lax.top_k(distribution, state.top_tokens.shape[-1])
    return state._replace(
        reader=steps.see(state.reader, tokens),
        tokens=state.tokens.at[:, state.step].set(tokens),
        logprobs=state.logprobs.at[:, state.step].set(jnp.where(state.done, 0.0, logprobs)),
        top_tokens=state.top_tokens.at[:, state.step].set(top_tokens),
        top_logprobs=state.top_logprobs.at[:, state.step].set(top_logprobs),
        lengths=state.lengths + ~state.done,
        done=state.done | steps.is_end(tokens, options),
        step=state.step + 1,
    )


def advance(
    module: Any, state: State, stopped: Bool[Array, "b"], limit: Int[Array, ""], options: DecodingOptions, knobs: Knobs
) -> State:
    """Runs until `limit` tokens are chosen or every row has ended.

    Args:
      stopped: rows that the caller ends now (a stop string has appeared).
    """

    def going(state: State) -> Bool[Array, ""]:
        return (state.step < jnp.minimum(limit, options.max_new_tokens)) & ~state.done.all()

    def body(state: State) -> State:
        reader, logits = steps.read(module, state.reader, state.tokens[:, state.step - 1])
        return choose(state._replace(reader=reader), logits, options, knobs)

    return jax.lax.while_loop(going, body, state._replace(done=state.done | stopped))
