"""Streams: batch k is a pure function of (config, seed, k), whatever reads it and wherever it starts."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.data.config import SourceConfig
from mmjax.data.exchanges import single_questions
from mmjax.data.processor import Processor
from mmjax.data.stream import make_stream
from mmjax.types import Batch, Example, Medium, Part, Turn, UserError


def take(stream, count: int) -> list[Batch]:
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def same(a: Batch, b: Batch) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) and all(map(same, first, second))


@pytest.fixture
def packed(config):
    return dataclasses.replace(config, pack=True, length=128, media=4, queries=8, window=50)


@pytest.fixture(params=[pytest.param("one per row", marks=pytest.mark.heavy), "packed"])
def either(request, config, packed):
    return dataclasses.replace(packed if request.param == "packed" else config, flip=True)


def test_batches_do_not_depend_on_workers(either, processor, world):
    expected = take(make_stream(either, processor, 3, open_source=world), 6)
    stream = make_stream(dataclasses.replace(either, workers=1 if either.pack else 2), processor, 3, open_source=world)
    assert_same(take(stream, 6), expected)


def test_start_resumes_exactly(either, processor, world):
    whole = make_stream(either, processor, 3, open_source=world)
    batches, positions = [], [whole.position()]
    for _ in range(8):
        batches.append(next(whole))
        positions.append(whole.position())
    whole.close()
    for start in (1, 5):
        assert_same(take(make_stream(either, processor, 3, start=start, open_source=world), 3), batches[start : start + 3])
        resumed = make_stream(either, processor, 3, start=start, position=positions[start], open_source=world)
        assert resumed.fingerprint == whole.fingerprint
        assert_same(take(resumed, 3), batches[start : start + 3])
    with pytest.raises(UserError, match="batch 5 .* batch 4"):
        make_stream(either, processor, 3, start=4, position=positions[5], open_source=world)


def test_processes_share_a_batch(either, processor, world, monkeypatch):
    """Each makes its own rows, and never opens the media of the others'; facts and places are those of the whole."""
    whole = make_stream(either, processor, 3, open_source=world)
    batches = [next(whole) for _ in range(12)]
    place = whole.position()
    whole.close()
    decoded, image = [], Processor.image
    monkeypatch.setattr(Processor, "image", lambda *given: decoded.append(0) or image(*given))
    for held in ((0, 2), (1, 3)):
        decoded.clear()
        stream = make_stream(either, processor, 3, open_source=world, held=held)
        own = [next(stream) for _ in range(12)]
        stream.close()
        assert_same(own, [jax.tree.map(lambda leaf: leaf[list(held)], batch) for batch in batches])  # noqa: B023
        assert stream.fingerprint == whole.fingerprint and stream.position() == place
        shown = sum(int(batch.media["image"].mask.sum()) for batch in batches)
        assert len(decoded) < 0.75 * shown, "half of the media and those of a few batches read ahead"


def test_seeds_differ(either, processor, world):
    first, second = (take(make_stream(either, processor, seed, open_source=world), 1)[0] for seed in (0, 1))
    assert not same(first, second)


def pictures(batches: list[Batch]) -> list[bytes]:
    return [
        image.tobytes()
        for b in batches
        for row, n in zip(*np.nonzero(b.media["image"].mask), strict=True)
        for image in [b.media["image"].values[row, n]]
    ]


def test_every_epoch_shows_every_example_once_in_another_order(config, processor, world):
    seen = pictures(take(make_stream(config, processor, 0, open_source=world), 12))[:46]
    first, second = seen[:23], seen[23:]
    assert len(set(first)) == 23 and set(first) == set(second) and first != second


def test_packed_windows_show_every_example_once(packed, processor, world):
    packed = dataclasses.replace(packed, window=46)
    stream = make_stream(packed, processor, 0, open_source=world)
    batches = take(stream, 3)
    seen = pictures(batches)
    assert len(seen) == 46 and len(set(seen)) == 23
    assert stream.fill > 0.85


def test_evaluation_reads_in_order_and_ends(config, processor, world):
    stream = make_stream(dataclasses.replace(config, flip=True), processor, 0, training=False, open_source=world)
    batches = list(stream)
    assert len(batches) == 6
    expected = [processor.image(example.media[0], "").tobytes() for example in world.lists["world"]]
    assert pictures(batches) == expected
    assert not batches[-1].text.segments[3].any(), "the last batch is filled with empty rows"


def test_flip_mirrors_about_half(config, processor, world):
    plain, flipped = (
        take(make_stream(dataclasses.replace(config, flip=flip), processor, 0, open_source=world), 12) for flip in (False, True)
    )
    states = []
    for a, b in zip(plain, flipped, strict=True):
        assert same(dataclasses.replace(a, media={}), dataclasses.replace(b, media={}))
        for left, right in zip(a.media["image"].values[:, 0], b.media["image"].values[:, 0], strict=True):
            mirrored = np.array_equal(left[:, ::-1], right)
            assert mirrored or np.array_equal(left, right)
            states.append(mirrored)
    assert 0.2 < np.mean(states) < 0.8


def test_weights_are_shares(config, processor, sources, example):
    both = sources(a=[example(i, 1) for i in range(5)], b=[example(i, 2) for i in range(7)])
    mixture = {"a": SourceConfig(path="a", weight=1.0), "b": SourceConfig(path="b", weight=3.0)}
    batches = take(make_stream(dataclasses.replace(config, mixture=mixture), processor, 0, open_source=both), 20)
    questions = np.concatenate([batch.text.segments.max(axis=1) for batch in batches])
    assert np.mean(questions == 2) == pytest.approx(0.75, abs=0.02)


def test_shares_may_follow_the_sizes(config, processor, sources, example):
    both = sources(a=[example(0)] * 4, b=[example(1)] * 64)
    mixture = {"a": SourceConfig(path="a", weight=1.0), "b": SourceConfig(path="b", weight=0.5)}
    config = dataclasses.replace(config, mixture=mixture, size_exponent=0.5)  # 1 x 2 against 0.5 x 8
    batches = take(make_stream(config, processor, 0, open_source=both), 30)
    pictures = np.concatenate([batch.media["image"].ids[:, 0] for batch in batches])
    counts = sorted(np.unique(pictures, return_counts=True)[1] / len(pictures))
    np.testing.assert_allclose(counts, [1 / 3, 2 / 3], atol=0.05)


def test_training_pictures_are_cut_at_random_and_others_are_not(config, processor, sources, example):
    one = sources(world=[example(0)])
    config = dataclasses.replace(config, crop=(0.5, 1.0), rand_augment=2)
    training = take(make_stream(config, processor, 0, open_source=one), 4)
    again = take(make_stream(config, processor, 0, open_source=one, start=2), 1)[0]
    assert len({values.tobytes() for batch in training for values in batch.media["image"].values}) > 4
    np.testing.assert_array_equal(again.media["image"].values, training[2].media["image"].values)
    still = take(make_stream(config, processor, 0, open_source=one, training=False), 1)[0]
    whole = take(
        make_stream(dataclasses.replace(config, crop=(), rand_augment=0), processor, 0, open_source=one, training=False), 1
    )[0]
    np.testing.assert_array_equal(still.media["image"].values, whole.media["image"].values)


def test_broken_media_are_counted_and_change_no_plan(either, processor, sources, example):
    healthy = [example(i) for i in range(40)]
    broken = [example(i, image=b"<html>" if i == 11 else None) for i in range(40)]
    good = make_stream(either, processor, 0, open_source=sources(world=healthy))
    bad = make_stream(either, processor, 0, open_source=sources(world=broken))
    for a, b in zip(take(good, 10), take(bad, 10), strict=True):
        np.testing.assert_array_equal(a.text.tokens, b.text.tokens)
        np.testing.assert_array_equal(a.feature_index, b.feature_index)
        silenced = ((a.text.loss_weights != b.text.loss_weights).any(axis=1)).sum()
        assert silenced == (a.media["image"].mask != b.media["image"].mask).sum()
    assert bad.skipped == bad.reasons["not an image"] > 0 and good.skipped == 0


def test_too_much_broken_data_stops_with_a_table(config, processor, sources, example):
    rotten = [example(i, image=b"<html>" if i % 2 else None) for i in range(40)]
    stream = make_stream(config, processor, 0, open_source=sources(world=rotten))
    with pytest.raises(UserError, match=r"\d+ x not an image \(first: example 'world/train/\d+', medium 0"):
        take(stream, 40)
    assert stream.skipped == 10


def clip(number: int, frames: int = 6) -> Medium:
    return Medium("video", np.random.default_rng(number).integers(0, 256, (frames, 9, 7, 3), dtype=np.uint8))


def film(number: int, medium: Medium | None = None) -> Example:
    """Two questions about a video."""
    turns = []
    for words in ("how many red ?", "what colour is it ?"):
        parts = (Part(text=words),) if turns else (Part(medium=0), Part(text=words))
        turns += [Turn("user", parts), Turn("assistant", (Part(text=str(number % 4)),))]
    return Example(f"films/{number}", media=(clip(number) if medium is None else medium,), turns=tuple(turns))


def test_a_video_is_trained_on_as_it_is_asked_about(config, processor, sources):
    """Each frame is a medium with a query of its own; the row of training begins with what decoding starts from."""
    films = dataclasses.replace(config, length=64, media=3, queries=6, frames=3)
    stream = make_stream(films, processor, 0, open_source=sources(world=[film(1)]), training=False)
    (trained,) = take(stream, 1)
    assert trained.media["image"].mask[0].tolist() == [True] * 3 and len(set(trained.media["image"].ids[0])) == 3
    assert trained.queries["image"].medium[0].tolist() == [0, 1, 2] * 2
    singles = single_questions(film(1))
    asked = dataclasses.replace(processor, frames=3).prompts(singles, "question_answer")
    np.testing.assert_array_equal(asked.media["image"].values, trained.media["image"].values[[0, 0]])
    for number in range(2):
        own, real = trained.text.segments[0] == number + 1, asked.text.segments[number] == 1
        size = real.sum()
        np.testing.assert_array_equal(trained.text.tokens[0, own][:size], asked.text.tokens[number, real])
        features = asked.feature_index[number, real]
        np.testing.assert_array_equal(trained.feature_index[0, own][:size], np.where(features < 0, -1, features + 9 * number))
        queries = slice(3 * number, 3 * number + 3)
        np.testing.assert_array_equal(trained.queries["image"].tokens[0, queries], asked.queries["image"].tokens[number])


def test_a_bad_video_is_a_bad_medium(config, processor, sources):
    bad = {"damaged": Medium("video", b"no video"), "wrong array": Medium("video", np.zeros((0, 4, 4, 3), np.uint8))}
    bad |= {"wrong kind": Medium("audio", b"RIFF")}
    films = dataclasses.replace(config, length=64, media=4, queries=8)
    healthy, spoilt = ([film(i, bad.get(reason)) for i, reason in enumerate(each)] for each in ([""] * 6, ["", *bad, "", ""]))
    streams = [make_stream(films, processor, 0, open_source=sources(world=list(each))) for each in (healthy, spoilt)]
    good, bad_batches = (take(stream, 3) for stream in streams)
    assert streams[1].reasons.keys() == bad.keys() and not streams[0].skipped
    silenced = sum((~batch.text.loss_weights.any(1)).sum() for batch in bad_batches)
    assert silenced == streams[1].skipped, "one count a video, however many frames it has"
    assert all(batch.text.loss_weights.any(1).all() for batch in good)


def test_frames_of_a_video_are_changed_alike(config, processor, sources):
    still = Medium("video", clip(0, 1).data.repeat(6, axis=0))
    films = dataclasses.replace(config, length=64, media=4, queries=8, crop=(0.3, 1.0), rand_augment=2, flip=True)
    batches = take(make_stream(films, processor, 0, open_source=sources(world=[film(0, still)])), 3)
    pictures = np.concatenate([batch.media["image"].values for batch in batches])
    assert (pictures == pictures[:, :1]).all() and len({row.tobytes() for row in pictures}) > 6


def test_texts_beyond_learned_positions_are_rejected(config, processor, sources, example):
    data = sources(world=[example(i, 2) for i in range(40)])
    short = dataclasses.replace(processor, positions=14)
    stream = make_stream(config, short, 0, open_source=data)
    with pytest.raises(UserError, match=r"has a text of 15 tokens, the language model has 14 positions \(parts.llm.max_pos"):
        take(stream, 12)
    stream = make_stream(config, dataclasses.replace(processor, positions=15), 0, open_source=data)
    take(stream, 4)
    assert not stream.skipped


class Damaged(list):
    """A list of examples, some of whose records cannot be read."""

    def __getitem__(self, index):
        if not isinstance(index, slice) and index == 3:
            raise UserError("shard 7: record 3 cannot be read")
        return Damaged(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)


def test_unreadable_records_leave_a_gap(either, processor, sources, example):
    stream = make_stream(either, processor, 0, open_source=sources(world=Damaged(example(i) for i in range(23))))
    take(stream, 8)
    assert stream.skipped == stream.reasons["unreadable record"] >= 1


def test_impossible_conversations_are_counted_by_name(either, processor, sources, example):
    either = dataclasses.replace(either, mixture={"world": SourceConfig(path="world", template="llava_v1")}, length=96)
    examples = [example(i) for i in range(23)]
    examples[3] = dataclasses.replace(examples[3], turns=examples[3].turns[1:])
    stream = make_stream(either, processor, 0, open_source=sources(world=examples))
    take(stream, 6)
    assert stream.skipped == stream.reasons["unusable example"] >= 1
    silent = [dataclasses.replace(one, turns=one.turns[1:]) for one in examples[4:]]
    stream = make_stream(either, processor, 0, open_source=sources(world=silent))
    with pytest.raises(UserError, match=r"example 'world/train/\d+': turn 1 is by 'assistant'"):
        take(stream, 12)


def test_examples_longer_than_a_row_are_rejected_and_counted(either, processor, sources, example):
    short = dataclasses.replace(either, length=35)
    data = sources(world=[example(i, 3 if i == 5 else 2) for i in range(40)])
    stream = make_stream(short, processor, 0, open_source=data)
    batches = take(stream, 12)
    assert stream.reasons["longer than a row"] == stream.skipped >= 1
    assert max(batch.text.segments.max() for batch in batches) == 2
    stream = make_stream(dataclasses.replace(short, length=8), processor, 0, open_source=data)
    with pytest.raises(UserError, match="a row holds"):
        take(stream, 12)


def test_fingerprint_follows_what_decides_batches(config, processor, world, sources, example):
    def of(**changes):
        return make_stream(dataclasses.replace(config, **changes), processor, 0, open_source=world).fingerprint

    assert of() == of(workers=0, prefetch=9)
    other = make_stream(config, processor, 0, open_source=sources(world=[example(i) for i in range(22)])).fingerprint
    assert len({of(), of(rows=8), of(flip=True), other, make_stream(config, processor, 1, open_source=world).fingerprint}) == 5


def test_mistakes_are_found_before_reading(config, processor, world, sources):
    with pytest.raises(UserError, match="template must be one of"):
        make_stream(
            dataclasses.replace(config, mixture={"world": SourceConfig(path="world", template="x")}),
            processor,
            0,
            open_source=world,
        )
    with pytest.raises(UserError, match="data.mixture.world.*no example"):
        make_stream(config, processor, 0, open_source=sources(world=[]))


ORPHAN = """
import dataclasses, os, sys, time
sys.path[:0] = [{root!r}, {here!r}]
from conftest import Sources, make_example, make_tokenizer
from mmjax.data.config import DataConfig, SourceConfig
from mmjax.data.processor import Processor
from mmjax.data.processor import Processor
from mmjax.data.stream import make_stream

if __name__ == "__main__":
    config = DataConfig(mixture={{"w": SourceConfig(path="w")}}, rows=2, length=32, soft_tokens=1, image_size=8, workers=1)
    world = Sources(w=[make_example(i) for i in range(4)])
    stream = make_stream(config, Processor(make_tokenizer()), 0, open_source=world)
    next(stream)
    import multiprocessing
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "orphan.py"
    here = Path(__file__).resolve().parent
    script.write_text(ORPHAN.format(root=str(here.parent.parent), here=str(here)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers and all(map(alive, workers))
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
