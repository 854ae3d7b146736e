"""How an answer is decoded. The options bear the names and meanings of `transformers.GenerationConfig`."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from numpy import ndarray

from mmjax.types import UserError


class Knobs(NamedTuple):
    """Options that may change from call to call without a new compilation."""

    temperature: Float[Array | ndarray, ""]
    top_k: Int[Array | ndarray, ""]
    top_p: Float[Array | ndarray, ""]
    length_penalty: Float[Array | ndarray, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Greedy by default; `do_sample` draws, `num_beams` above 1 searches, both together sample beams.

    Args:
      max_new_tokens: tokens an answer may have, its end token included.
      min_new_tokens: no end token before the answer has so many tokens.
      num_beams: hypotheses kept per row.
      do_sample: draw tokens instead of taking the likeliest.
      temperature: logits are divided by it before drawing.
      top_k: draw among the k likeliest tokens; 0 = among all.
      top_p: draw among the fewest likeliest tokens whose probabilities reach top_p; 1 = among all.
      length_penalty: a finished beam scores (sum of log-probabilities) / length ** length_penalty.
      repetition_penalty: logits of tokens that prompt or answer already hold are divided by it when positive, multiplied
        when negative (arXiv 1909.05858); 1 = off.
      early_stopping: of beams: True stops at num_beams finished ones, False when no running beam looks better at its present
        length, "never" when none can become better at any length.
      eos_token_id: the end token, or several; not given = the model's, see `Processor.end_ids`.
      pad_token_id: fills rows after their end.
      vocabulary: ids from here on are never chosen; 0 = all may be; not given = the model's, see `Processor.words`.
      top_logprobs: so many likeliest tokens are told with the log-probability of each chosen one; without beams.
      seed: row i of a call draws from seed + i, so that its neighbours never matter.
    """

    max_new_tokens: int = 16
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float | int = 1.0
    top_k: int = 0
    top_p: float | int = 1.0
    length_penalty: float | int = 1.0
    repetition_penalty: float | int = 1.0
    early_stopping: bool | str = False
    eos_token_id: int | tuple[int, ...] = ()
    pad_token_id: int = 0
    vocabulary: int = 0
    top_logprobs: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, low in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_beams", 1), ("top_k", 0), ("top_logprobs", 0)):
            if getattr(self, name) < low:
                raise UserError(f"{name} must be {low} or more, got {getattr(self, name)}")
        for name in ("temperature", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)} (do_sample=False decodes greedily)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.early_stopping not in (True, False, "never"):
            raise UserError(f"early_stopping must be True, False or 'never', got {self.early_stopping!r}")
        if self.top_logprobs and self.num_beams > 1:
            raise UserError(f"top_logprobs={self.top_logprobs} goes with num_beams=1, got num_beams={self.num_beams}")
        ends = (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)
        object.__setattr__(self, "eos_token_id", tuple(sorted({int(token) for token in ends})))

    def split(self) -> tuple[DecodingOptions, Knobs]:
        """What a compiled function depends on (the rest at its default), and what it takes as arguments."""
        knobs = Knobs(
            np.float32(self.temperature), np.int32(self.top_k), np.float32(self.top_p), np.float32(self.length_penalty)
        )
        return dataclasses.replace(self, temperature=1.0, top_k=0, top_p=1.0, length_penalty=1.0, seed=0), knobs
