"""Rules for short answers against the values of the reference implementations."""

from __future__ import annotations

import pytest

from mmjax.evaluation.metrics.vqa import (
    CONTRACTIONS,
    gqa_accuracy,
    normalise_textvqa,
    normalise_vqa,
    textvqa_accuracy,
    vqa_accuracy,
)
from mmjax.types import UserError

OFFICIAL = {
    "The Red Car.": "red car",
    "Ten": "10",
    "1,000 people": "1000 people",
    "on/off": "on off",
    "on / off": "on off",
    "yes, it is": "yes it is",
    "dont": "don't",
    "U.S.": "us",
    "5 p.m.": "5 pm",
    "3.5": "3.5",
    "10:30": "10:30",
    "None": "0",
    "(left)": "left",
    "left (side)": "left side",
    "black-and-white": "black and white",
    "black - white": "black white",
    "it's 2,5 m.": "it's 25 m",
    "A": "",
    "youre": "you're",
    "somebody'd": "somebodyd",
    "couldnt've": "couldn't've",
    "y'allll": "y'all'll",
}


@pytest.mark.parametrize("text", OFFICIAL)
def test_official_normalisation(text):
    assert normalise_vqa(text) == OFFICIAL[text]


@pytest.mark.parametrize(("agreeing", "accuracy"), list(enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1])))
def test_accuracy_by_number_of_people_who_agree(agreeing, accuracy):
    answers = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_accuracy("The red.", [*answers[:-1], "green"]) == pytest.approx(accuracy)


def test_unanimous_answers_are_compared_raw():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("yes\n", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1


def test_only_a_full_stop_before_a_digit_stays():
    assert normalise_vqa("." * 40) == "." * 8  # 32 replacements at most
    assert normalise_vqa("no. 5.5.") == "no 5.5"


def test_the_list_of_contractions_mends_one_missing_apostrophe():
    assert 110 < len(CONTRACTIONS) < 140
    assert "its" not in CONTRACTIONS and "well" not in CONTRACTIONS and "shes" not in CONTRACTIONS


def test_vqa_accuracy_refuses_what_it_cannot_score():
    with pytest.raises(UserError, match="got 1"):
        vqa_accuracy("red", ["red"])


M4C = {"man's hat": "man 's hat", "one's": "1 's", "it's 2,5 m.": "it 's 25 m", "The Red Car.": "red car", "STOP!\n": "stop"}


@pytest.mark.parametrize("text", M4C)
def test_normalisation_of_textvqa(text):
    assert normalise_textvqa(text) == M4C[text]


@pytest.mark.parametrize(("agreeing", "accuracy"), list(enumerate([0, 0.3, 0.6, 0.9, 1, 1])))
def test_textvqa_counts_people_as_vqa_does(agreeing, accuracy):
    answers = ["Nokia"] * agreeing + [f"brand {i}" for i in range(10 - agreeing)]
    assert textvqa_accuracy("nokia.", answers) == pytest.approx(accuracy)


def test_textvqa_normalises_unanimous_answers_too():
    assert textvqa_accuracy("Yes", ["yes"] * 10) == 1
    with pytest.raises(UserError, match="textvqa_accuracy expects ten answers per question, got 2"):
        textvqa_accuracy("red", ["red", "red"])


@pytest.mark.parametrize(
    ("prediction", "score"), [("Yes.", 1), ("yes..", 1), ("yes", 1), ("yes!", 0), (" yes", 0), ("yes it is", 0)]
)
def test_gqa_forgives_capitals_and_full_stops_only(prediction, score):
    assert gqa_accuracy(prediction, ["yes"]) == score
