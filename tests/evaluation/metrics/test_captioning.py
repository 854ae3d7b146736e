"""BLEU, ROUGE-L and CIDEr-D against the values of pycocoevalcap 1.2, and what they must do by definition."""

from __future__ import annotations

import pytest

from mmjax.evaluation.metrics.captioning import bleu, cider_d, longest_common_subsequence, rouge_l

REFERENCES = [
    [
        "a grey cat sleeps on the old wooden bench",
        "the cat is asleep on a bench",
        "a cat lying on a park bench",
    ],
    ["two red boats float near the pier", "a pair of red boats by the pier at dusk", "red boats in the water"],
    ["a man 's hat hangs on the door it 's brown", "brown hat on a door", "the hat does n't fit the hook"],
    ["three dogs run across the wet sand", "dogs running on a beach", "some dogs are running on the beach"],
]
HYPOTHESES = [
    "a cat is sleeping on a wooden bench",
    "two boats near a pier",
    "a brown hat hanging on the door",
    "three dogs run on the beach",
]
PEOPLE = [[caption.split() for caption in captions] for captions in REFERENCES]
SAID = [caption.split() for caption in HYPOTHESES]


def test_bleu_of_the_reference():
    assert bleu(SAID, PEOPLE) == pytest.approx([0.923077, 0.679366, 0.425290, 0.000048], abs=1e-6)
    unigrams = [bleu([said], [people])[0] for said, people in zip(SAID, PEOPLE, strict=True)]
    assert unigrams == pytest.approx([0.875, 1.0, 0.857143, 1.0], abs=1e-6)


def test_rouge_l_of_the_reference():
    each = [rouge_l(said, people) for said, people in zip(SAID, PEOPLE, strict=True)]
    assert each == pytest.approx([0.674779, 0.647215, 0.762500, 0.625641], abs=1e-6)
    assert sum(each) / 4 == pytest.approx(0.677534, abs=1e-6)


def test_cider_d_of_the_reference():
    each = cider_d(SAID, PEOPLE)
    assert each == pytest.approx([1.815266, 1.060175, 1.591671, 2.242231], abs=1e-6)
    assert sum(each) / 4 == pytest.approx(1.677336, abs=1e-6)


def test_a_short_corpus_pays_for_its_brevity():
    # 2 words for 4: precision 1, brevity exp(1 - 4/2). Of 3 and 5 words, as close to 4, the shorter counts: no penalty.
    assert bleu([["a", "b"]], [[["a", "b", "c", "d"]]])[0] == pytest.approx(0.367879, abs=1e-6)
    assert bleu([["a"] * 4], [[["a"] * 5, ["a"] * 3]])[0] == pytest.approx(1)


def test_captions_without_words_score_nothing_and_break_nothing():
    assert bleu([[]], [[["a"]]]) == [0.0] * 4
    assert rouge_l([], [["a"]]) == 0.0 and rouge_l(["a"], [[]]) == 0.0
    assert cider_d([[], ["a", "b"]], [[["a", "b"]], [["c", "d"]]]) == [0.0, 0.0]


def test_cider_d_depends_on_the_set_and_is_ten_at_most():
    captions = [["red", "boats", "on", "water"], ["dogs", "run", "on", "sand"], ["hats", "hang", "on", "doors"]]
    people = [[caption] for caption in captions]
    assert cider_d(captions, people) == pytest.approx([10.0] * 3)
    assert cider_d(captions[:1], people[:1]) == [0.0]


def test_cider_d_gains_nothing_from_repetition_and_forgives_little_length():
    people = [[["red", "boats"]], [["grey", "dogs"]]]
    once, twice = ["red", "boats"], ["red", "boats", "red", "boats"]
    assert cider_d([twice, once], people)[0] < cider_d([once, once], people)[0] / 1.1


def test_common_subsequence():
    assert longest_common_subsequence("a b c b d a b".split(), "b d c a b a".split()) == 4
