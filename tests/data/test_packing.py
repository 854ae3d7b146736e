"""Packing: every item once or rejected, nothing overfull, the same plan everywhere, and tight."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.packing import plan_window

SIZES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 5)), max_size=60)
ROOM = st.tuples(st.integers(1, 32), st.integers(0, 3), st.integers(0, 4))


@settings(deadline=None, max_examples=60)
@given(SIZES, ROOM, st.integers(0, 2**62))
def test_plans_are_partitions_that_fit(sizes, room, seed):
    sizes = np.array(sizes, int).reshape(-1, 3)
    rows, rejected = plan_window(sizes, room, seed)
    fits = (sizes <= room).all(axis=1)
    assert sorted(sum(rows, [])) == np.flatnonzero(fits & sizes.any(axis=1)).tolist()
    assert rejected == np.flatnonzero(~fits).tolist()
    assert all((sizes[row].sum(axis=0) <= room).all() for row in rows)
    assert all(row == sorted(row) and row for row in rows)
    assert plan_window(sizes, room, seed) == (rows, rejected)


@settings(deadline=None, max_examples=30)
@given(SIZES, ROOM)
def test_the_seed_moves_rows_only(sizes, room):
    sizes = np.array(sizes, int).reshape(-1, 3)
    assert sorted(plan_window(sizes, room, 0)[0]) == sorted(plan_window(sizes, room, 1)[0])


def test_a_full_window_is_tight_and_quick():
    generator = np.random.default_rng(0)
    sizes = np.stack([generator.integers(20, 700, 16384), generator.integers(0, 2, 16384), np.zeros(16384, int)], axis=1)
    started = time.process_time()
    rows, rejected = plan_window(sizes, (2048, 8, 0), 0)
    assert time.process_time() - started < 5
    assert not rejected and sizes[:, 0].sum() / (len(rows) * 2048) > 0.97
    assert rows != sorted(rows), "rows are shuffled"


def test_scarce_slots_do_not_empty_the_rows():
    """Five slots for 4.4 images a row: long texts without an image go beside short ones with."""
    generator = np.random.default_rng(0)
    images = (generator.random(8000) < 0.9).astype(int)
    positions = np.minimum(np.exp(generator.normal(5.7, 0.6, 8000)).astype(int) + 576 * images + 900 * (1 - images), 2048)
    sizes = np.stack([positions, images], axis=1)
    rows, _ = plan_window(sizes, (4096, 5), 0)
    assert positions.sum() / (len(rows) * 4096) > 0.93 and images.sum() / (len(rows) * 5) > 0.7
