"""Metrics over (prediction, accepted answers). Each has one number per question in 0…1, averaged overall and by kind."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from mmjax.types import UserError


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
      score: (prediction, accepted answers) -> 0…1.
      implementation: what exactly is computed, printed with every number.
    """

    score: Callable[[str, Sequence[str]], float]
    implementation: str


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers, both by `plain`."""
    return float(plain(prediction) in {plain(answer) for answer in answers})


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of VQAv2 (arXiv 1505.00468, official evaluation code): the mean over the people of min(1, others who agree / 3).

    Text is normalised only if the people disagree; when all gave the same string, the prediction must be that very string.

    Raises:
      UserError: fewer than four answers, of which no prediction could score 1.
    """
    if len(answers) < 4:
        raise UserError(
            f"vqa_accuracy expects ten answers per question, got {len(answers)}; use --config.evaluations.….metric=exact_match"
        )
    prediction, *answers = (re.sub(r"[\n\t]", " ", text).strip() for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = (normalise_vqa(text) for text in (prediction, *answers))
    agreeing = sum(answer == prediction for answer in answers)
    return sum(min(1.0, (agreeing - (answer == prediction)) / 3) for answer in answers) / len(answers)


NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {
    "none": "0"
}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# The official list mends words that lack one apostrophe, and, by mistake, breaks one that lacks none.
CONTRACTIONS = {broken: word for word in _CONTRACTIONS for broken in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}


def normalise_vqa(text: str) -> str:
    """The official normalisation of VQA answers: punctuation, number words, articles, contractions, with its quirks.

    A mark that touches a space anywhere is deleted everywhere, any other becomes a space; the full-stop pattern's look-behind
    is mistyped in the original and so does nothing, and it replaces 32 full stops at most.
    """
    thousands = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        delete = thousands or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if delete else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned, count=32)
    words = (NUMBERS.get(word, word) for word in cleaned.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


METRICS: dict[str, Metric] = {
    "exact_match": Metric(exact_match, "equal after lower-casing, single spaces, no full stop at the end"),
    "vqa_accuracy": Metric(
        vqa_accuracy, "official VQAv2 accuracy: mean over ten people of min(1, agreeing others / 3), official normalisation"
    ),
}


def find_metric(name: str) -> Metric:
    """The metric of that name; UserError naming the choices for any other."""
    if name not in METRICS:
        raise UserError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name]


def mean(scores: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return math.fsum(scores) / len(scores) if scores else math.nan


def by_kind(scores: Sequence[float], kinds: Sequence[str]) -> dict[str, tuple[float, int]]:
    """(mean, number) of each kind of question, kinds in alphabetical order; questions without a kind are left out."""
    groups = collections.defaultdict(list)
    for score, kind in zip(scores, kinds, strict=True):
        if kind:
            groups[kind].append(score)
    return {kind: (mean(groups[kind]), len(groups[kind])) for kind in sorted(groups)}
