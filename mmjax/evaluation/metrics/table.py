"""All metrics of answers by name. A metric sees a whole evaluation at once, for some are no means over questions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmjax.evaluation.metrics import captioning, ptb, vqa
from mmjax.evaluation.metrics.choices import chosen_option, precision_recall, says_no, yes_no_counts
from mmjax.types import UserError


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a metric gives.

    Args:
      value: the number that bears the metric's name.
      each: of every question; the value need not be their mean.
      also: further numbers by name.
    """

    value: float
    each: Sequence[float]
    also: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
      score: (predictions, the references of each, what the example's `meta` says of each) -> Scores.
      implementation: what exactly is computed, printed with every number.
      share: whether the value lies in 0…1 and half of it makes an answer right.
    """

    score: Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[Mapping[str, Any]]], Scores]
    implementation: str
    share: bool = True


def mean(scores: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return math.fsum(scores) / len(scores) if scores else math.nan


def mean_of(rule: Callable[[str, Sequence[str]], float], implementation: str) -> Metric:
    """The metric that is the mean of a rule (prediction, accepted answers) -> 0…1 over questions."""

    def score(predictions: Sequence[str], references: Sequence[Sequence[str]], metas: Sequence[Mapping[str, Any]]) -> Scores:
        each = [rule(prediction, answers) for prediction, answers in zip(predictions, references, strict=True)]
        return Scores(mean(each), each)

    return Metric(score, implementation)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers, both by `plain`."""
    return float(plain(prediction) in {plain(answer) for answer in answers})


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def pope(predictions: Sequence[str], references: Sequence[Sequence[str]], metas: Sequence[Mapping[str, Any]]) -> Scores:
    """Accuracy of yes and no, with F1, precision, recall and yes-ratio, where yes is positive (POPE, arXiv 2305.10355).

    Raises:
      UserError: a truth that is neither "yes" nor "no".
    """
    truths = []
    for answers in references:
        if answers[0] not in ("yes", "no"):
            raise UserError(f"pope_accuracy expects the answers yes and no, got {answers[0]!r}")
        truths.append(answers[0] == "yes")
    each = [float(truth != says_no(prediction)) for prediction, truth in zip(predictions, truths, strict=True)]
    return Scores(mean(each), each, precision_recall(yes_no_counts(predictions, truths)))


def science_qa(predictions: Sequence[str], references: Sequence[Sequence[str]], metas: Sequence[Mapping[str, Any]]) -> Scores:
    """Accuracy of options named by letter; an answer that names none is wrong, and counted in "unreadable".

    Raises:
      UserError: a question without `meta["choices"]`.
    """
    each, unreadable = [], 0
    for prediction, answers, meta in zip(predictions, references, metas, strict=True):
        if not meta.get("choices"):
            raise UserError("science_qa_accuracy reads letters of meta['choices'], which a question lacks; use exact_match")
        option = chosen_option(prediction, meta["choices"])
        each.append(float(option in answers))
        unreadable += option is None
    return Scores(mean(each), each, {"unreadable": unreadable / len(each) if each else 0.0})


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]], metas: Sequence[Mapping[str, Any]]) -> Scores:
    """CIDEr-D of captions, with BLEU-1 … BLEU-4 and ROUGE-L."""
    hypotheses = [ptb.words(prediction) for prediction in predictions]
    people = [[ptb.words(caption) for caption in captions] for captions in references]
    each = captioning.cider_d(hypotheses, people)
    bleu = {f"bleu_{n}": value for n, value in enumerate(captioning.bleu(hypotheses, people), 1)}
    return Scores(mean(each), each, {**bleu, "rouge_l": mean(list(map(captioning.rouge_l, hypotheses, people)))})


METRICS: dict[str, Metric] = {
    "exact_match": mean_of(exact_match, "equal after lower-casing, single spaces, no full stop at the end"),
    "vqa_accuracy": mean_of(
        vqa.vqa_accuracy,
        "official VQAv2 accuracy: mean over ten people of min(1, agreeing others / 3), official normalisation",
    ),
    "ok_vqa_accuracy": mean_of(
        vqa.vqa_accuracy,
        "official VQAv2 accuracy over the release's ten stemmed answers; the prediction is not stemmed or lemmatised",
    ),
    "textvqa_accuracy": mean_of(
        vqa.textvqa_accuracy,
        "VQAv2's mean over ten people of min(1, agreeing others / 3), always normalised, by TextVQA's (M4C) answer processor",
    ),
    "gqa_accuracy": mean_of(vqa.gqa_accuracy, "equal to GQA's answer after lower-casing and without full stops at the end"),
    "science_qa_accuracy": Metric(
        science_qa, "letter of an option by LLaVA's rule (X | X. … | The answer is X.); an unreadable answer is wrong"
    ),
    "pope_accuracy": Metric(
        pope, "POPE's rule: no or not before the first full stop is a no, all else a yes; F1, precision, recall of yes"
    ),
    "cider": Metric(
        cider,
        "CIDEr-D (0…10; usually printed × 100), corpus BLEU and ROUGE-L as coco-caption defines them, words by a Python "
        "tokenizer after Stanford's; METEOR and SPICE, which need Java, are not computed",
        share=False,
    ),
}


def find_metric(name: str) -> Metric:
    """The metric of that name; UserError naming the choices for any other."""
    if name not in METRICS:
        raise UserError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name]
