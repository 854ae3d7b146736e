"""BLEU, ROUGE-L and CIDEr-D of captions, with the definitions of the COCO caption evaluation (arXiv 1504.00325).

All three take lists of words (`mmjax.evaluation.metrics.ptb`): `hypotheses`, one caption a picture, and `references`, the
captions of people, some for each picture.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

Words = Sequence[str]
Counts = collections.Counter[tuple[str, ...]]

MOST_WORDS = 4  # of an n-gram
BETA = 1.2  # how much more recall weighs than precision in ROUGE-L
SIGMA = 6.0  # words of difference in length that CIDEr-D forgives


def ngrams(words: Words, n: int) -> Counts:
    """How often each run of n words occurs."""
    return collections.Counter(zip(*(words[start:] for start in range(n)), strict=False))


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 … BLEU-4 of a corpus (Papineni et al., ACL 2002).

    Clipped counts and lengths are summed over the corpus; a picture's effective reference length is the closest one, the
    shorter of two as close. Precisions are smoothed only against zero.
    """
    right, said = [0] * MOST_WORDS, [0] * MOST_WORDS
    length = wanted = 0
    for words, people in zip(hypotheses, references, strict=True):
        length += len(words)
        wanted += min((abs(len(other) - len(words)), len(other)) for other in people)[1]
        for n in range(1, MOST_WORDS + 1):
            most = collections.Counter()
            for other in people:
                most |= ngrams(other, n)
            right[n - 1] += (ngrams(words, n) & most).total()
            said[n - 1] += max(len(words) - n + 1, 0)
    brevity = min(1.0, math.exp(1 - (wanted + 1e-9) / (length + 1e-15))) if length else 0.0
    logs = [math.log((hits + 1e-15) / (total + 1e-9)) for hits, total in zip(right, said, strict=True)]
    return [brevity * math.exp(math.fsum(logs[:n]) / n) for n in range(1, MOST_WORDS + 1)]


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of one caption (Lin, 2004): F of the longest common subsequence.

    Precision and recall are each the best over the references, which need not be the same one.
    """
    common = [(longest_common_subsequence(words, other), len(other)) for other in references]
    precision = max(hits for hits, _ in common) / len(words) if words else 0.0
    recall = max(hits / length if length else 0.0 for hits, length in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(a: Words, b: Words) -> int:
    """Words that both hold in the same order, with others between them."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]


def cider_d(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each picture (arXiv 1411.5726), on the scale 0…10.

    N-grams weigh the more, the fewer pictures have them in a reference: the score of a caption depends on the set that it is
    evaluated with, and with a single picture it is 0.
    """
    frequency = Counts()
    for people in references:
        frequency.update({gram for other in people for n in range(1, MOST_WORDS + 1) for gram in ngrams(other, n)})
    pictures = math.log(len(references)) if references else 0.0

    def bags(words: Words) -> list[dict[tuple[str, ...], float]]:
        return [
            {gram: count * (pictures - math.log(max(frequency[gram], 1))) for gram, count in ngrams(words, n).items()}
            for n in range(1, MOST_WORDS + 1)
        ]

    def score(words: Words, people: Sequence[Words]) -> float:
        own, total = bags(words), 0.0
        for other in people:
            # The original counts a caption's length in bigrams.
            difference = max(len(words) - 1, 0) - max(len(other) - 1, 0)
            similarity = sum(map(_similarity, own, bags(other))) / MOST_WORDS
            total += similarity * math.exp(-(difference**2) / (2 * SIGMA**2))
        return 10 * total / len(people)

    return [score(words, people) for words, people in zip(hypotheses, references, strict=True)]


def _similarity(a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float]) -> float:
    """Cosine of two weighted bags, in which the first gains nothing from repeating what the second has."""
    shared = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
    lengths = math.hypot(*a.values()) * math.hypot(*b.values())
    return shared / lengths if lengths else 0.0
