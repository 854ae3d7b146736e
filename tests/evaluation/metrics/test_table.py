"""Metrics over whole evaluations."""

from __future__ import annotations

import math

import pytest

from mmjax.evaluation.metrics import METRICS, find_metric, mean
from mmjax.evaluation.metrics.table import exact_match
from mmjax.types import UserError
from tests.evaluation.metrics.test_captioning import HYPOTHESES, REFERENCES


def scores(name, predictions, references, metas=None):
    return find_metric(name).score(predictions, references, metas or [{}] * len(predictions))


def test_exact_match_is_of_plain_text():
    assert exact_match(" Two  Cats. ", ["two cats", "cats"]) == 1
    assert exact_match("two", ["2"]) == 0


def test_means():
    assert scores("exact_match", ["a", "b"], [["a"], ["c"]]).value == 0.5
    assert mean([1.0, 0.0]) == 0.5 and math.isnan(mean([]))
    with pytest.raises(UserError, match="exact_match, vqa_accuracy"):
        find_metric("bleu")


def test_captions_are_tokenised_and_scored_together():
    found = scores("cider", [f"{text.capitalize()}." for text in HYPOTHESES], REFERENCES)
    assert found.value == pytest.approx(1.677336, abs=1e-6) == mean(found.each)
    expected = {"bleu_1": 0.923077, "bleu_2": 0.679366, "bleu_3": 0.425290, "bleu_4": 0.000048, "rouge_l": 0.677534}
    assert found.also == pytest.approx(expected, abs=1e-6)
    assert not METRICS["cider"].share and "METEOR" in METRICS["cider"].implementation


def test_pope_reads_free_text_and_gives_f1():
    found = scores("pope_accuracy", ["Yes, a dog", "No.", "sure", "no"], [["yes"], ["yes"], ["no"], ["no"]])
    assert found.value == 0.5 and found.each == [1, 0, 0, 1]
    assert found.also == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "yes_ratio": 0.5}
    with pytest.raises(UserError, match="expects the answers yes and no, got 'red'"):
        scores("pope_accuracy", ["yes"], [["red"]])


def test_science_qa_compares_options_not_letters():
    options = {"choices": ["milk", "stone"]}
    found = scores("science_qa_accuracy", ["B", "The answer is A.", "C", "stone"], [["stone"]] * 4, [options] * 4)
    assert found.each == [1, 0, 0, 0] and found.also == {"unreadable": 0.5}
    with pytest.raises(UserError, match="choices"):
        scores("science_qa_accuracy", ["B"], [["stone"]])


def test_people_are_counted_by_every_accuracy_of_people():
    people = ["red"] * 4 + ["dark red"] * 6
    for name in ("vqa_accuracy", "ok_vqa_accuracy", "textvqa_accuracy"):
        assert scores(name, ["Red."], [people]).value == 1
    assert scores("gqa_accuracy", ["Red."], [["red"]]).value == 1


def test_every_metric_says_what_it_computes():
    assert all(len(metric.implementation) > 20 for metric in METRICS.values())
