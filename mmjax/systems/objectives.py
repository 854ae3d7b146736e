"""What a stage minimises: each objective is a pair of pure functions over (system, batch).

`counts` depends on the batch only and is taken over the global batch before any micro-batching; `sums` gives the sum of each
loss term. The loss is Σ weight · sum / count, so padding, packing, accumulation and sharding never move it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmjax.objectives.fused import fused_next_token_loss
from mmjax.objectives.language_modelling import next_token_loss
from mmjax.systems import blip2
from mmjax.types import Batch, UserError

Sums = dict[str, Array]
Metrics = dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective, ready to run.

    Args:
      counts: batch -> {term: count}.
      sums: (system, batch, dropout key) -> ({term: sum}, {metric: (sum, count)}).
      weights: weight of each term in the loss.
      pairwise: whether terms compare rows with one another, so that the batch must not be split into micro-batches.
    """

    counts: Callable[[Batch], Sums]
    sums: Callable[[Any, Batch, Array | None], tuple[Sums, Metrics]]
    weights: Mapping[str, float]
    pairwise: bool = False


def language_modelling(
    *, label_smoothing: float = 0.0, chunk: int = 512, prior: Any = None, cross_entropy: str = "xla", **_: Any
) -> tuple[Callable, Callable, tuple[str, ...], bool]:
    """Next-token prediction over the text rows: captions, answers, plain text."""

    def counts(batch: Batch) -> Sums:
        return {"text": batch.text.loss_weights.sum()}

    def sums(system: Any, batch: Batch, key: Array | None) -> tuple[Sums, Metrics]:
        text = batch.text
        table = None if prior is None or batch.prior_index is None else (batch.prior_index, jnp.asarray(prior))
        hidden = system.hidden(batch, key)
        with jax.named_scope("llm"):
            if cross_entropy == "tokamax":
                hidden, head = system.llm.to_head(hidden)
                head = head[:, : system.llm.config.vocab]
                return {"text": fused_next_token_loss(hidden, head, text.targets, text.loss_weights, chunk=chunk)}, {}
            loss, hits = next_token_loss(
                system.llm.logits, hidden, text.targets, text.loss_weights,
                chunk=chunk, smoothing=label_smoothing, prior=table,
            )  # fmt: skip
        return {"text": loss}, {"token_accuracy": (hits, text.loss_weights.sum())}

    return counts, sums, ("text",), False


def blip2_stage1(
    *, label_smoothing: float = 0.0, chunk: int = 512, positives: blip2.Positives = "pairs", **_: Any
) -> tuple[Callable, Callable, tuple[str, ...], bool]:
    """Contrast, matching and image-grounded generation (BLIP-2 stage 1)."""

    def counts(batch: Batch) -> Sums:
        return blip2.stage1_counts(batch, positives)

    def sums(system: Any, batch: Batch, key: Array | None) -> tuple[Sums, Metrics]:
        return blip2.stage1_sums(system, batch, key, smoothing=label_smoothing, chunk=chunk, positives=positives)

    return counts, sums, ("itc", "itm", "itg"), True


OBJECTIVES: dict[str, Callable[..., tuple[Callable, Callable, tuple[str, ...], bool]]] = {
    "language_modelling": language_modelling,
    "blip2_stage1": blip2_stage1,
}


def make_objective(name: str, weights: Mapping[str, float], **options: Any) -> Objective:
    """The objective of this name.

    Args:
      weights: of its terms; a term not named weighs 1.
      options: the rest of a stage's ObjectiveConfig, of which each objective takes what it knows, and prior (a table of
        log-priors [rows, vocab]).

    Raises:
      UserError: an unknown objective or term.
    """
    if name not in OBJECTIVES:
        raise UserError(f"objective.name={name!r} is unknown; there are {', '.join(OBJECTIVES)}")
    counts, sums, terms, pairwise = OBJECTIVES[name](**options)
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise UserError(f"objective.weights names {unknown[0]!r}; {name} has the terms {', '.join(terms)}")
    return Objective(counts, sums, {term: weights.get(term, 1.0) for term in terms}, pairwise)
