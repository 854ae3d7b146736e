"""Assembling rows: where every token, target, feature, query and prior stands."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmjax.data.batch import BatchShape, Item, assemble, item_size
from mmjax.data.templates import TEMPLATES
from mmjax.types import UserError

IMAGE = np.full((8, 8, 3), 7, np.uint8)


def shape_of(**sizes) -> BatchShape:
    default = dict(
        rows=2, length=32, media=2, queries=4, query_length=12, soft_tokens=3, image_size=8, pad_id=1, query_pad_id=1
    )
    return BatchShape(**(default | sizes))


@pytest.fixture
def item(processor, example):
    """Makes an item of two questions about one image."""

    def make(number: int = 0, image=IMAGE, template="question_answer") -> Item:
        segments = tuple(map(processor.tokenise, TEMPLATES[template](example(number))))
        return Item(f"item/{number}", segments, {0: image} if segments[0].media else {})

    return make


def test_segments_share_a_row_but_nothing_else(item):
    one = item()
    text = assemble([[one]], shape_of()).text
    size = len(one.segments[0].tokens)
    assert text.segments[0].tolist() == [1] * size + [2] * size + [0] * (32 - 2 * size)
    assert text.positions[0, : 2 * size].tolist() == [*range(size)] * 2
    for start, segment in zip((0, size), one.segments, strict=True):
        np.testing.assert_array_equal(text.targets[0, start : start + size - 1], segment.tokens[1:])
        np.testing.assert_array_equal(text.loss_weights[0, start : start + size], [*segment.weights[1:], 0])
        learnt = text.loss_weights[0, start : start + size] > 0
        assert text.targets[0, start : start + size][learnt].tolist() == segment.tokens[-2:].tolist()
    assert not text.segments[1].any() and not text.loss_weights[1].any()


def test_features_follow_queries(item):
    batch = assemble([[item(0), item(1)]], shape_of(length=64))
    assert batch.feature_index[0][batch.feature_index[0] >= 0].tolist() == list(range(12))
    assert batch.queries["image"].medium.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert batch.queries["image"].mask.any(-1).tolist() == [[True] * 4, [False] * 4]
    assert batch.media["image"].mask.tolist() == [[True, True], [False, False]]


def test_features_follow_media_without_queries(item):
    index = assemble([[item(0), item(1)]], shape_of(length=64, queries=0)).feature_index[0]
    assert index[index >= 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5], "two questions share the tokens of one image"


def test_sizes_of_zero_leave_fields_out(item):
    batch = assemble([[item(0, template="caption_pair")]], shape_of(length=0, queries=1, query_length=12))
    assert batch.text is None and batch.feature_index is None and batch.prior_index is None
    assert batch.queries["image"].tokens[0, 0, 0] == 3 and batch.media["image"].mask[0, 0]
    words = assemble([[item(0, template="document")]], shape_of(length=64, media=0, queries=0, soft_tokens=0))
    assert words.media == {} and words.queries == {} and words.feature_index is None


def test_a_broken_medium_silences_what_refers_to_it(item):
    broken, whole = (
        assemble([[item(0, None), item(1)]], shape_of(length=64)),
        assemble([[item(0), item(1)]], shape_of(length=64)),
    )
    for field in ("tokens", "targets", "positions", "segments"):
        np.testing.assert_array_equal(getattr(broken.text, field), getattr(whole.text, field))
    np.testing.assert_array_equal(broken.feature_index, whole.feature_index)
    own = np.isin(broken.text.segments[0], (1, 2))
    assert not broken.text.loss_weights[0, own].any()
    np.testing.assert_array_equal(broken.text.loss_weights[0, ~own], whole.text.loss_weights[0, ~own])
    assert broken.media["image"].mask[0].tolist() == [False, True]
    assert broken.queries["image"].mask[0].any(-1).tolist() == [False, False, True, True]


def test_prior_stands_where_the_answer_begins(item):
    one = item()
    index = assemble([[one]], shape_of(), prior={one.segments[1].prompt: 5}).prior_index
    (row, position), *others = np.argwhere(index).tolist()
    text = assemble([[one]], shape_of()).text
    assert not others and row == 0 and index[row, position] == 5
    assert text.targets[0, position] == one.segments[1].tokens[one.segments[1].answer]


def test_left_padding_moves_everything_alike(item):
    one = item()
    single = dataclasses.replace(one, segments=one.segments[:1])
    left, right = assemble([[single]], shape_of(), left=True), assemble([[single]], shape_of())
    size = len(single.segments[0].tokens)
    for field in ("tokens", "targets", "positions", "segments", "loss_weights"):
        np.testing.assert_array_equal(getattr(left.text, field)[0, -size:], getattr(right.text, field)[0, :size])
    np.testing.assert_array_equal(left.feature_index[0, -size:], right.feature_index[0, :size])


def test_counts_that_differ_are_named(item):
    with pytest.raises(UserError, match=r"item/0.*3 placeholders.*1 media x 4"):
        assemble([[item()]], shape_of(soft_tokens=4))
    with pytest.raises(UserError, match=r"item/0.*3 placeholders.*0 media"):
        assemble([[item()]], shape_of(media=0, queries=0))
    with pytest.raises(UserError, match=r"item/0.*\(30, 1, 2\).*\(29, 2, 4\)"):
        assemble([[item()]], shape_of(length=29))


def test_item_size_counts_what_the_shape_has(item):
    assert item_size(item().segments, shape_of()) == (30, 1, 2)
    assert item_size(item().segments, shape_of(length=0, queries=0)) == (0, 1, 0)
