"""Rules for short answers: (prediction, accepted answers) -> 0…1, with the text normalisation of each benchmark."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmjax.types import UserError


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
    prediction, *answers = (_one_line(text) for text in (prediction, *_of_people(answers, "vqa_accuracy")))
    if len(set(answers)) > 1:
        prediction, *answers = (normalise_vqa(text) for text in (prediction, *answers))
    return agreement(prediction, answers)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of TextVQA (arXiv 1904.08920): that of VQAv2, but always normalised, by `normalise_textvqa`.

    Raises:
      UserError: fewer than four answers.
    """
    prediction, *answers = (normalise_textvqa(text) for text in (prediction, *_of_people(answers, "textvqa_accuracy")))
    return agreement(prediction, answers)


def gqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction, in lower case and without full stops at its end, is the answer (GQA, arXiv 1902.09506)."""
    return float(prediction.rstrip(".").lower() in answers)


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the people of min(1, others who said the same / 3)."""
    agreeing = sum(answer == prediction for answer in answers)
    return sum(min(1.0, (agreeing - (answer == prediction)) / 3) for answer in answers) / len(answers)


def _of_people(answers: Sequence[str], metric: str) -> Sequence[str]:
    if len(answers) < 4:
        raise UserError(
            f"{metric} expects ten answers per question, got {len(answers)}; use --config.evaluations.….metric=exact_match"
        )
    return answers


def _one_line(text: str) -> str:
    return re.sub(r"[\n\t]", " ", text).strip()


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


def normalise_textvqa(text: str) -> str:
    """The normalisation of TextVQA's own evaluation (M4C, arXiv 1911.06258): possessives apart, then as for VQAv2."""
    return normalise_vqa(_one_line(text.lower().replace(",", "").replace("?", "").replace("'s", " 's")))
