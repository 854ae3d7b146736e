"""Ranks and recalls, with ties in the middle."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.evaluation.metrics.retrieval import ranks, recalls


def test_the_best_own_candidate_counts():
    scores = np.array([[0.9, 0.1, 0.5, 0.4], [0.9, 0.2, 0.8, 0.1]])
    own = np.array([[True, True, False, False], [False, False, True, True]])
    assert ranks(scores, own).tolist() == [1, 2]


def test_equal_scores_of_others_stand_half_before_and_half_behind():
    own = np.eye(5, dtype=bool)
    assert ranks(np.zeros((5, 5)), own).tolist() == [3] * 5  # (1 + 5) / 2
    assert recalls(ranks(np.zeros((5, 5)), own), (1, 5)) == {1: 0.0, 5: 1.0}


def test_equal_scores_of_its_own_cost_nothing():
    assert ranks(np.array([[1.0, 1.0, 0.0]]), np.array([[True, True, False]])).tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_sorting(seed):
    scores = np.random.default_rng(seed).normal(size=(20, 40))
    own = np.zeros((20, 40), bool)
    own[np.arange(20), np.arange(20) * 2] = own[np.arange(20), np.arange(20) * 2 + 1] = True
    order = np.argsort(-scores, axis=1)
    expected = [1 + min(list(row).index(2 * i), list(row).index(2 * i + 1)) for i, row in enumerate(order)]
    assert ranks(scores, own).tolist() == expected
    assert recalls(ranks(scores, own), (5,))[5] == np.mean(np.array(expected) <= 5)
