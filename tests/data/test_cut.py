"""Conversations longer than the longest example: cut on the right, never within an image, counted and named."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from mmjax.data.config import DataConfig, SourceConfig
from mmjax.data.media.tiles import Tiling
from mmjax.data.processor import Processor
from mmjax.data.render import totals
from mmjax.data.stream import make_stream
from mmjax.data.templates import TEMPLATES
from mmjax.types import Example, Medium, Part, Turn, UserError
from tests.data.conftest import Sources, png
from tests.data.pieces import make_pieces

SOFT = 5


@pytest.fixture(scope="module")
def processor():
    return Processor(make_pieces(), soft_tokens=SOFT, image_size=8)


def talk(number: int = 0, rounds: int = 3, image: int = 1) -> Example:
    """Questions and answers; the picture belongs to question number `image`."""
    turns = []
    for index in range(rounds):
        shown = (Part(medium=0),) if index == image else ()
        turns += [Turn("user", (*shown, Part(f"Why {index}?"))), Turn("assistant", (Part(f"Since {number}."),))]
    media = (Medium("image", png(number), "image/png"),) if image < rounds else ()
    return Example(f"talks/{number}", media=media, turns=tuple(turns))


def config(**fields) -> DataConfig:
    mixture = {"talks": SourceConfig(path="talks", template="llava_v1")}
    return DataConfig(**{"mixture": mixture, "rows": 2, "length": 400, "soft_tokens": SOFT, "image_size": 8, **fields})


@pytest.mark.parametrize("tiled", [False, True])
def test_a_cut_keeps_the_beginning_and_no_part_of_an_image(processor, tiled):
    if tiled:  # 4 soft tokens of the whole, 4 of two tiles in rows that a newline ends
        processor = dataclasses.replace(processor, soft_tokens=4, tiling=Tiling(((8, 16), (16, 8)), 8, 2))
    one = talk()
    segment = TEMPLATES["llava_v1"](one)[0]
    whole = processor.tokenise(segment, one.media)
    first, *_, last = np.flatnonzero(whole.features != -1)
    assert last - first + 1 > 4 and whole.lost == 0
    for longest in range(1, len(whole.tokens) + 2):
        cut = dataclasses.replace(processor, longest=longest).tokenise(segment, one.media)
        expected = first if first < longest <= last else min(longest, len(whole.tokens))
        assert len(cut.tokens) == expected and cut.lost == len(whole.tokens) - expected
        for name in ("tokens", "weights", "features"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:expected])
        assert cut.media == (whole.media if expected > last else ()) and (cut.placeholders > 0) == bool(cut.media)


def read(settings: DataConfig, processor: Processor, examples: list[Example], batches: int = 3):
    stream = make_stream(settings, processor, 0, open_source=Sources(talks=examples))
    made = [next(stream) for _ in range(batches)]
    stream.close()
    return stream, made


@pytest.mark.parametrize("pack", [False, True])
def test_every_cut_is_counted_and_named(processor, pack, caplog):
    long = [talk(number, rounds=12 if number % 5 == 0 else 2) for number in range(40)]
    settings = config(longest=160, pack=pack, media=4, window=40)
    with caplog.at_level(logging.WARNING):
        stream, batches = read(settings, processor, long, 10)
    assert stream.reasons["cut at the longest example"] > 0 and stream.skipped == 0
    facts = totals(batches[-1].facts)
    assert facts.keys() == {"fill", "media_fill", "cut", "skipped"} and 0 < facts["fill"] <= 1
    (line,) = [record.getMessage() for record in caplog.records if "cut at the longest example" in record.getMessage()]
    assert "example 'talks/" in line and "(data.longest" in line
    longest = max(np.bincount(row[row > 0]).max() for batch in batches for row in batch.text.segments if row.any())
    assert longest == 160, "the longest example, not the row"


def test_without_a_longest_example_the_row_cuts(processor):
    stream, batches = read(config(length=100), processor, [talk(number, rounds=12) for number in range(8)])
    assert stream.reasons["cut at the longest example"] == 6 and stream.skipped == 0
    assert all((batch.text.segments > 0).sum(1).max() <= 100 for batch in batches)


def test_what_teaches_nothing_any_more_is_counted(processor):
    """The system's words fill all the room, so that no answer is left."""
    stream, batches = read(config(longest=20), processor, [talk(number) for number in range(4)])
    assert stream.reasons["nothing left to learn after the cut"] == stream.reasons["cut at the longest example"] == 6
    assert not any(batch.text.loss_weights.any() for batch in batches)


def test_refusing_instead(processor):
    examples = [talk(number, rounds=12 if number == 3 else 2) for number in range(40)]
    stream, _ = read(config(longest=200, too_long="refuse"), processor, examples, 20)
    assert stream.reasons == {"longer than a row": 1} and stream.skipped == 1
    with pytest.raises(UserError, match=r"first: example 'talks/\d+' has a text of \d+ tokens, data.longest is 50"):
        read(config(longest=50, too_long="refuse"), processor, examples, 20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"longest": 401}, "longest=401 must be at most length=400"),
        ({"too_long": "drop"}, "too_long must be 'cut' or 'refuse'"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)
