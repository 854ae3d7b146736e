"""Recall at k of image–text retrieval from a matrix of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

CUTS = (1, 5, 10)


def ranks(scores: Float[ndarray, "n m"], own: Bool[ndarray, "n m"]) -> Float[ndarray, "n"]:
    """Rank of the best own candidate of each row among all candidates, 1 = first.

    Candidates of others that score the same stand half before and half behind it (the mean of the optimistic and the
    pessimistic rank), so that a model whose scores are all equal gains nothing.

    Args:
      scores: of each candidate (column) for each question (row).
      own: which candidates are right; at least one a row.
    """
    best = np.max(np.where(own, scores, -np.inf), axis=1, keepdims=True)
    return 1 + np.sum(scores > best, axis=1) + np.sum((scores == best) & ~own, axis=1) / 2


def recalls(ranks: Float[ndarray, "n"], cuts: Sequence[int] = CUTS) -> dict[int, float]:
    """Share of rows whose rank is k at most, for each k."""
    return {k: float(np.mean(ranks <= k)) for k in cuts}
