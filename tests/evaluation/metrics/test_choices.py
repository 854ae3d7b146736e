"""Choices read out of free text, by the rules of POPE and of ScienceQA's evaluation."""

from __future__ import annotations

import pytest

from mmjax.evaluation.metrics.choices import chosen_option, option_letter, precision_recall, says_no, yes_no_counts


@pytest.mark.parametrize(
    ("prediction", "no"),
    [
        ("No", True),
        ("no, there is not.", True),
        ("There is not a dog", True),
        ("Yes. There is no cat", False),  # after the first full stop
        ("NO", False),  # not in the rule's list
        ("none", False),
        ("nothing there", False),
        ("", False),
        ("a dog", False),
        ("There is,no dog", False),  # a comma is deleted, not replaced: "isno"
    ],
)
def test_what_pope_takes_for_a_no(prediction, no):
    assert says_no(prediction) is no


def test_precision_and_recall_of_yes():
    counts = yes_no_counts(["yes", "yes", "no", "no", "yes"], [True, False, True, False, True])
    assert counts == {"true_yes": 2, "false_yes": 1, "true_no": 1, "false_no": 1}
    figures = precision_recall(counts)
    assert figures == pytest.approx({"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "yes_ratio": 0.6})


def test_a_model_that_never_says_yes_divides_nothing_by_zero():
    assert set(precision_recall(yes_no_counts(["no"] * 3, [False] * 3)).values()) == {0.0}
    assert set(precision_recall(yes_no_counts([], [])).values()) == {0.0}


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("F", ""),
        ("b", ""),
        ("C. milk", "C"),
        ("C.", ""),
        ("C) milk", ""),
        ("The answer is D.", "D"),
        ("I think The answer is A, surely", "A"),
        ("The answer is D. The answer is D.", ""),
        ("AB", ""),
        ("", ""),
    ],
)
def test_letters_of_options(prediction, letter):
    assert option_letter(prediction) == letter


def test_letters_beyond_the_last_option_choose_nothing():
    assert chosen_option("B", ["milk", "stone"]) == "stone"
    assert chosen_option("C", ["milk", "stone"]) is None
    assert chosen_option("The answer is Z.", ["milk", "stone"]) is None
    assert chosen_option("milk", ["milk", "stone"]) is None
