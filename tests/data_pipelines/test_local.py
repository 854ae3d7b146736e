"""The local shell: order, dropping, bounded memory, errors; the same results in this process and in others."""

from __future__ import annotations

import pytest

from data_pipelines import local
from data_pipelines.shapes import describe, draw


def flat(chunks):
    return [item for chunk in chunks for item in chunk]


def halve(number):
    return [number // 2] if number % 2 == 0 else []


def twice(number):
    return [number, -number]


def test_steps_drop_and_multiply_in_order():
    assert local.apply((halve, twice), range(6)) == [0, 0, 1, -1, 2, -2]
    assert flat(local.run((), range(1000), processes=0)) == list(range(1000))
    assert flat(local.run((halve, twice), range(1000), processes=0)) == [s * n for n in range(500) for s in (1, -1)]
    assert flat(local.run((halve,), [])) == []


def test_results_come_as_they_are_ready():
    seen = []
    chunks = local.run((lambda item: [seen.append(item)],), range(1000), processes=0)
    next(chunks)
    assert 0 < len(seen) < 1000


def test_worker_processes_give_the_same_in_the_same_order():
    items = [("train", index) for index in range(600)]
    here, there = (flat(local.run((draw, describe), items, processes=processes)) for processes in (0, 1))
    assert here == there and len(here) == 600


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(KeyError, match="nowhere"):
        flat(local.run((draw,), [("nowhere", 0)] * 300, processes=1))
