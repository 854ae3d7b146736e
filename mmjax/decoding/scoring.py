"""`score`: log-probabilities of given continuations, by the forward pass of training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy import ndarray

from mmjax.data.batch import assemble
from mmjax.data.media.video import with_frames
from mmjax.data.segments import Piece, Segment, Special
from mmjax.decoding.inputs import as_examples, batched, bucket, check_positions
from mmjax.decoding.placement import fetch, place
from mmjax.decoding.writer import writer_of
from mmjax.types import Batch, Example, UserError
from mmjax.types.model import Model

CHUNK = 128  # positions whose logits exist at once


class TokenScores(NamedTuple):
    """What the model thinks of each position's next token.

    Args:
      logprobs: log-probability of the batch's target.
      top_tokens, top_logprobs: the k likeliest tokens, likeliest first.
    """

    logprobs: Float[Array | ndarray, "b t"]
    top_tokens: Int[Array | ndarray, "b t k"]
    top_logprobs: Float[Array | ndarray, "b t k"]


def score(
    model: Model,
    examples: Sequence[Example | str] | Example | str,
    continuations: Sequence[str] | Sequence[Sequence[str]],
    *,
    images: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    template: str | None = None,
    batch_size: int = 64,
    end: bool = True,
    mean: bool = False,
) -> Float[ndarray, "..."]:
    """Log-probabilities of continuations: for ranking, perplexity, preference references.

    Args:
      model: a Model.
      examples, images, videos, template: the prompts, as `generate` takes them.
      continuations: one per example, or a list of candidates per example. Where neither brings white space, a space is
        put between prompt and continuation.
      batch_size: rows scored at once.
      end: count the end token too.
      mean: divide by the number of tokens.

    Returns:
      float32 [examples], or [examples, candidates], −inf where an example has fewer candidates.

    Raises:
      UserError: another number of continuations than of examples, or a text beyond the positions of the language model.
    """
    asked, model = as_examples(examples, images=images, videos=videos), writer_of(model)
    if isinstance(continuations, str):
        continuations = [continuations]
    if len(continuations) != len(asked):
        raise UserError(f"continuations: expected one per example, {len(asked)} in all, got {len(continuations)}")
    lists = [[given] if isinstance(given, str) else list(given) for given in continuations]
    pairs = [(example, text) for example, texts in zip(asked, lists, strict=True) for text in texts]
    rows = bucket(max(len(pairs), 1), batch_size)

    values: list[float] = []
    for part in batched(pairs, batch_size):
        batch = teacher_batch(model.processor, part, template, rows=rows, end=end)
        counted = batch.text.loss_weights > 0
        totals = np.where(counted, token_scores(model, batch).logprobs, 0).sum(1)
        values += list((totals / np.maximum(counted.sum(1), 1) if mean else totals)[: len(part)])

    table = np.full((len(asked), max(map(len, lists), default=1)), -np.inf, np.float32)
    table[[i for i, texts in enumerate(lists) for _ in texts], [j for texts in lists for j in range(len(texts))]] = values
    return table[:, 0] if all(isinstance(given, str) for given in continuations) else table


def teacher_batch(
    processor: Any, pairs: Sequence[tuple[Example, str]], template: str | None, *, rows: int = 0, end: bool = True
) -> Batch:
    """One row per pair: the prompt with weight 0, then the continuation with weight 1."""
    items = []
    for example, text in ((with_frames(example, processor.frames), text) for example, text in pairs):
        prompt = processor.question(example, template)
        last = prompt.parts[-1] if prompt.parts else None
        joined = isinstance(last, Piece) and not last.text[-1:].isspace() and not text[:1].isspace()
        tail = (Piece(f" {text}" if joined else text, 1.0), *((Special("eos", 1.0),) if end else ()))
        items.append(processor.item(example, Segment((*prompt.parts, *tail), query=prompt.query)))
    return assemble([[item] for item in items], processor.shape_of(items, rows))


def token_scores(model: Model, batch: Batch, top: int = 0) -> TokenScores:
    """Log-probabilities of every position's target by one forward pass.

    Args:
      batch: of NumPy arrays.
      top: how many of the likeliest tokens to tell besides, k; a vocabulary that is smaller tells all.

    Returns:
      NumPy arrays.
    """
    check_positions(model.definition.bind(model.parameters).llm, batch)
    forward = model.cache.setdefault(
        "decoding.token_scores", jax.jit(functools.partial(_token_scores, model.definition.bind), static_argnames="top")
    )
    return fetch(forward(model.parameters, place(batch, model.parameters), top=top))


def _token_scores(bind: Any, parameters: Any, batch: Batch, *, top: int) -> TokenScores:
    module, text = bind(parameters), batch.text
    hidden = module.hidden(batch)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], x.shape[0] * CHUNK, *x.shape[3:])[:, : hidden.shape[1]]

    def weigh(chunk: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        hidden, targets = chunk
        logprobs = jax.nn.log_softmax(module.llm.logits(hidden))
        top_logprobs, top_tokens = jax.lax.top_k(logprobs, min(top, logprobs.shape[-1]))
        return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], top_tokens, top_logprobs

    return TokenScores(*map(join, jax.lax.map(weigh, (split(hidden), split(text.targets)))))
