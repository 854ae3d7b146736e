"""Runs a search to its end: compiles it once per shape and kind, carries the state from piece to piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mmjax.decoding import beam, sampling
from mmjax.decoding.inputs import check_positions
from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.placement import fetch, place
from mmjax.types import Batch

Parameters = Mapping[str, Any]


class Answers(NamedTuple):
    """What has been decoded so far, on the host.

    Args:
      tokens: chosen tokens, then pads.
      logprobs: log-probability of each token under the distribution that it was chosen from, before top-k, top-p and
        penalties; logits are divided by the temperature when drawing.
      lengths: tokens of each row, its end token included.
      top_tokens, top_logprobs: the options.top_logprobs likeliest tokens of that distribution, likeliest first.
    """

    tokens: Int[ndarray, "b n"]
    logprobs: Float[ndarray, "b n"]
    lengths: Int[ndarray, "b"]
    top_tokens: Int[ndarray, "b n k"]
    top_logprobs: Float[ndarray, "b n k"]


class Searcher:
    """The compiled functions of one model.

    Args:
      bind: parameters -> bound system module, called inside the compiled functions.
    """

    def __init__(self, bind: Callable[[Parameters], Any]):
        self._bind = bind
        self.compilations = 0  # programs compiled so far: Python runs these functions only when they are traced

        def start(parameters, batch, seeds, knobs, options):
            self.compilations += 1
            return _kind(options).start(bind(parameters), batch, seeds, options, knobs)

        def advance(parameters, state, stopped, limit, knobs, options):
            self.compilations += 1
            return _kind(options).advance(bind(parameters), state, stopped, limit, options, knobs)

        self._start = jax.jit(start, static_argnames="options")
        self._advance = jax.jit(advance, static_argnames="options", donate_argnames="state")

    def pieces(
        self,
        parameters: Parameters,
        batch: Batch,
        options: DecodingOptions,
        *,
        seeds: Int[ndarray, "b"] | None = None,
        piece: int = 0,
        stop: Callable[[Answers], ndarray] | None = None,
    ) -> Iterator[Answers]:
        """Decodes a batch, yielding all that has been decoded after the first token and after every piece.

        What goes beyond the positions of the language model is not refused here, but by `run`: the caller may know that a row
        ends before.

        Args:
          parameters: of the model.
          batch: prompts, one segment a row, padded on the left.
          options: see DecodingOptions; end tokens must be given.
          seeds: each row's own; default options.seed + row.
          piece: tokens decoded between two looks from the host; 0 = all at once.
          stop: tells after each piece which rows end now.
        """
        rows = batch.text.tokens.shape[0]
        static, knobs = options.split()
        state = self._begin(parameters, batch, options, seeds)
        step, longest, stopped = 1, options.max_new_tokens, np.zeros(rows, bool)
        while True:
            if piece or step == longest:
                answers = _fetch(state)
                yield answers
                if stop is not None:
                    stopped = stopped | stop(answers)
                if step == longest or (fetch(state.done) | stopped).all():
                    return
            step = min(step + (piece or longest), longest)
            state = self._advance(parameters, state, stopped, np.int32(step), knobs, options=static)

    def compile(self, parameters: Parameters, batch: Batch, options: DecodingOptions) -> None:
        """Compiles all that a batch of this shape needs; arguments as of `pieces`."""
        static, knobs = options.split()
        state = self._begin(parameters, batch, options, None)
        nothing = np.zeros(batch.text.tokens.shape[0], bool)
        jax.block_until_ready(self._advance(parameters, state, nothing, np.int32(2), knobs, options=static))

    def _begin(self, parameters: Parameters, batch: Batch, options: DecodingOptions, seeds: ndarray | None) -> Any:
        static, knobs = options.split()
        if seeds is None:
            seeds = options.seed + np.arange(batch.text.tokens.shape[0])
        seeds = (np.asarray(seeds) & 0x7FFFFFFF).astype(np.int32)
        return self._start(parameters, place(batch, parameters), seeds, knobs, options=static)

    def run(self, parameters: Parameters, batch: Batch, options: DecodingOptions, **how: Any) -> Answers:
        """Decodes a batch to the end; see `pieces`.

        Raises:
          UserError: prompts and max_new_tokens go beyond the positions of the language model.
        """
        check_positions(self._bind(parameters).llm, batch, options.max_new_tokens)
        *_, last = self.pieces(parameters, batch, options, **how)
        return last


def _kind(options: DecodingOptions) -> Any:
    return beam if options.num_beams > 1 else sampling


def _fetch(state: Any) -> Answers:
    return Answers(*fetch(tuple(getattr(state, name) for name in Answers._fields)))
