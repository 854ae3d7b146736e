"""Predictions of a model: decoded answers, or the likeliest of given choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mmjax.decoding.generate import answer_batches, make_options
from mmjax.decoding.inputs import batched
from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.scoring import score
from mmjax.evaluation.config import EvaluationOptions
from mmjax.types import Example, UserError
from mmjax.types.model import Model


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says to a question.

    Args:
      text: of the answer.
      logprob: natural logarithm of its probability, summed over its tokens.
      choices: (choice, logprob) of everything it was chosen from.
    """

    text: str
    logprob: float
    choices: tuple[tuple[str, float], ...] = ()


Predictor = Callable[[Model, Iterable[Example], EvaluationOptions, str], Iterator[list[Prediction]]]


def decoding_options(model: Model, options: EvaluationOptions) -> DecodingOptions:
    """How an evaluation decodes."""
    names = ("max_new_tokens", "min_new_tokens", "num_beams", "length_penalty", "repetition_penalty")
    ends = {"eos_token_id": options.eos_token_id} if options.eos_token_id else {}
    return make_options(model, {name: getattr(options, name) for name in names} | ends)


def generated(model: Model, asked: Iterable[Example], options: EvaluationOptions, template: str) -> Iterator[list[Prediction]]:
    """Decoded answers, batch by batch."""
    decoding = decoding_options(model, options)
    for answers in answer_batches(model, asked, decoding, template=template, rows=options.batch_size):
        yield [Prediction(str(answer), float(np.sum(answer.logprobs))) for answer in answers]


def ranked(model: Model, asked: Iterable[Example], options: EvaluationOptions, template: str) -> Iterator[list[Prediction]]:
    """The choice with the largest summed log-probability of its tokens, the first of equals (InstructBLIP, arXiv 2305.06500).

    Raises:
      UserError: a question without choices.
    """
    for part in batched(asked, options.batch_size):
        choices = [_choices(question, options) for question in part]
        table = score(
            model, part, choices, template=template, batch_size=options.batch_size, end=options.rank_end
        )  # fmt: skip
        yield [
            Prediction(given[int(np.argmax(row))], float(np.max(row)), tuple(zip(given, map(float, row), strict=False)))
            for given, row in zip(choices, table, strict=True)
        ]


def _choices(question: Example, options: EvaluationOptions) -> tuple[str, ...]:
    choices = options.choices or tuple(question.meta.get("choices", ()))
    if not choices:
        raise UserError(f"example {question.id!r} has no meta['choices'] to rank; give the evaluation `choices`")
    return choices


PREDICTORS: dict[str, Predictor] = {"answer": generated, "caption": generated, "rank": ranked}
