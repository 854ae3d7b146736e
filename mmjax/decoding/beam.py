"""Beam search with the scoring of `transformers`: same candidates, same length penalty, same three ways of stopping.

Each step weighs every continuation of every beam, keeps enough candidates that `num_beams` of them go on even if the others
end, moves those that ended among the best `num_beams` to the finished list, and reorders the cache for the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.decoding import step as steps
from mmjax.decoding.options import DecodingOptions, Knobs
from mmjax.types import Batch

IMPOSSIBLE = -1e9  # the float32 sum of this and any score orders below every real score


class Beams(NamedTuple):
    """Hypotheses of each row, best first.

    Args:
      tokens: the answers, padded.
      logprobs: of each token.
      lengths: tokens of each.
      scores: what they are ordered by: log-probability while running, divided by the length penalty once finished.
      finished: whether the hypothesis is one (the finished list starts empty).
    """

    tokens: Int[Array, "b w n"]
    logprobs: Float[Array, "b w n"]
    lengths: Int[Array, "b w"]
    scores: Float[Array, "b w"]
    finished: Bool[Array, "b w"]

    def best(self, count: int) -> Beams:
        """The `count` best by score."""
        return self.take(jax.lax.top_k(self.scores, count)[1])

    def take(self, index: Int[Array, "b w"]) -> Beams:
        """These hypotheses of each row."""
        return jax.tree.map(lambda leaf: jax.vmap(lambda row, chosen: row[chosen])(leaf, index), self)


class State(NamedTuple):
    """A search under way: `running` and `finished` hypotheses; `open` rows may still improve."""

    reader: steps.Reader
    running: Beams
    finished: Beams
    open: Bool[Array, "b"]
    step: Int[Array, ""]
    seeds: Int[Array, "b"]

    @property
    def done(self) -> Bool[Array, "b"]:
        return ~self.open

    @property
    def tokens(self) -> Int[Array, "b n"]:
        return self.finished.tokens[:, 0]

    @property
    def logprobs(self) -> Float[Array, "b n"]:
        return self.finished.logprobs[:, 0]

    @property
    def top_tokens(self) -> Int[Array, "b n 0"]:
        return jnp.zeros((*self.tokens.shape, 0), jnp.int32)

    @property
    def top_logprobs(self) -> Float[Array, "b n 0"]:
        return jnp.zeros((*self.tokens.shape, 0), jnp.float32)

    @property
    def lengths(self) -> Int[Array, "b"]:
        return self.finished.lengths[:, 0]


def start(module: Any, batch: Batch, seeds: Int[Array, "b"], options: DecodingOptions, knobs: Knobs) -> State:
    """Reads the prompts once, then gives every beam its copy and chooses the first tokens."""
    reader, logits = steps.prefill(module, batch, options)
    rows, beams, length = logits.shape[0], options.num_beams, options.max_new_tokens
    empty = Beams(
        jnp.full((rows, beams, length), options.pad_token_id, jnp.int32),
        jnp.zeros((rows, beams, length), jnp.float32),
        jnp.zeros((rows, beams), jnp.int32),
        jnp.full((rows, beams), IMPOSSIBLE, jnp.float32),
        jnp.zeros((rows, beams), bool),
    )
    # All beams are alike before the first token: only the first one may be continued.
    running = empty._replace(scores=empty.scores.at[:, 0].set(0.0))
    copies = jnp.repeat(jnp.arange(rows), beams)
    state = State(reader.take(copies), running, empty, ~steps.is_empty(batch), jnp.zeros((), jnp.int32), seeds)
    return extend(state, logits[copies], options, knobs)


def extend(state: State, logits: Float[Array, "r vocab"], options: DecodingOptions, knobs: Knobs) -> State:
    """One more token for every beam (r = rows × beams)."""
    rows, beams = state.running.scores.shape
    vocab = logits.shape[-1]
    logprobs = jax.nn.log_softmax(logits)
    scores = steps.process(logprobs, state.reader, state.step, options, knobs).reshape(rows, beams, vocab)
    totals = (scores + state.running.scores[:, :, None]).reshape(rows, beams * vocab)

    keep = min(max(2, 1 + len(options.eos_token_id)) * beams, beams * vocab)
    if options.do_sample:  # Gumbel top-k: draws without replacement (arXiv 1903.06059)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (beams * vocab,)))(steps.row_keys(state.seeds, state.step))
        chosen = jax.lax.top_k(totals + noise, keep)[1]
    else:
        chosen = jax.lax.top_k(totals, keep)[1]
    parents, tokens = chosen // vocab, (chosen % vocab).astype(jnp.int32)
    token_logprobs = jnp.take_along_axis(logprobs.reshape(rows, beams * vocab), chosen, axis=1)
    candidates = state.running.take(parents)
    length = state.step + 1
    candidates = candidates._replace(
        tokens=candidates.tokens.at[:, :, state.step].set(tokens),
        logprobs=candidates.logprobs.at[:, :, state.step].set(token_logprobs),
        lengths=jnp.full_like(parents, length),
        scores=jnp.take_along_axis(totals, chosen, axis=1),
    )
    ended = steps.is_end(tokens, options) | (length >= options.max_new_tokens)

    going = jax.lax.top_k(candidates.scores + ended * IMPOSSIBLE, beams)[1]
    running = candidates.take(going)
    running = running._replace(scores=running.scores + jnp.take_along_axis(ended, going, axis=1) * IMPOSSIBLE)

    # Candidates beyond the first num_beams are only there to keep the search running: they cannot finish.
    finishing = ended & (jnp.arange(keep) < beams)
    closed = ~state.open | ((options.early_stopping is True) & state.finished.finished.all(axis=1))
    penalised = candidates.scores / length.astype(jnp.float32) ** knobs.length_penalty
    candidates = candidates._replace(scores=penalised + (~finishing | closed[:, None]) * IMPOSSIBLE, finished=finishing)
    merged = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, candidates)
    finished = merged.best(beams)

    source = (jnp.arange(rows)[:, None] * beams + jnp.take_along_axis(parents, going, axis=1)).reshape(-1)
    still_open = state.open & may_improve(running, finished, length, options, knobs)
    return state._replace(
        reader=steps.see(state.reader.exchange(source), jnp.take_along_axis(tokens, going, axis=1).reshape(-1)),
        running=running,
        finished=finished,
        open=still_open,
        step=length,
    )


def may_improve(
    running: Beams, finished: Beams, length: Int[Array, ""], options: DecodingOptions, knobs: Knobs
) -> Bool[Array, "b"]:
    """Whether the best running beam may still beat the worst finished one (a row with an empty place always may)."""
    horizon = length.astype(jnp.float32)
    if options.early_stopping == "never":
        horizon = jnp.where(knobs.length_penalty > 0, float(options.max_new_tokens), horizon)
    possible = running.scores[:, 0] / horizon**knobs.length_penalty
    worst = jnp.where(finished.finished, finished.scores.min(axis=1, keepdims=True), IMPOSSIBLE)
    improvable = (possible[:, None] > worst).any(axis=1)
    if options.early_stopping is True:
        improvable &= ~finished.finished.all(axis=1)
    return improvable


def advance(
    module: Any, state: State, stopped: Bool[Array, "b"], limit: Int[Array, ""], options: DecodingOptions, knobs: Knobs
) -> State:
    """Runs until `limit` tokens are chosen or no row can improve; `stopped` closes rows."""

    def going(state: State) -> Bool[Array, ""]:
        return (state.step < jnp.minimum(limit, options.max_new_tokens)) & state.open.any()

    def body(state: State) -> State:
        last = state.running.tokens[:, :, state.step - 1].reshape(-1)
        reader, logits = steps.read(module, state.reader, last)
        return extend(state._replace(reader=reader), logits, options, knobs)

    return jax.lax.while_loop(going, body, state._replace(open=state.open & ~stopped))
