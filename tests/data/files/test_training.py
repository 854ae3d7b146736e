"""Streams over files: the same batches from any start and worker, and bad rows counted, never silent."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from mmjax.data.config import DataConfig, SourceConfig
from mmjax.data.processor import Processor
from mmjax.data.stream import make_stream
from mmjax.types import UserError
from tests.data.files.conftest import png


@pytest.fixture
def processor(tokenizer):
    return Processor(tokenizer, soft_tokens=2, image_size=6)


def config(path, **changes) -> DataConfig:
    mixture = {"own": SourceConfig(path=str(path), template="instruction")}
    return DataConfig(mixture=mixture, length=32, soft_tokens=2, image_size=6, **{"rows": 4, **changes})


def take(stream, count):
    batches = list(itertools.islice(stream, count))
    stream.close()
    return [jax.tree.leaves(batch) for batch in batches]


def same(left, right):
    return len(left) == len(right) and all(all(map(np.array_equal, a, b)) for a, b in zip(left, right, strict=True))


@pytest.fixture
def llava(folder, row):
    folder.pictures(*(f"{number}.png" for number in range(23)))
    return folder.json("train.json", [row(number) for number in range(23)])


@pytest.mark.parametrize("pack", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_a_file_trains_as_a_prepared_data_set_does(llava, processor, pack):
    packed = config(llava, **({"pack": True, "media": 3, "window": 40} if pack else {}))
    whole = make_stream(packed, processor, 3)
    batches = take(whole, 6)
    start, position = 3, None
    if pack:
        stream = make_stream(packed, processor, 3)
        list(itertools.islice(stream, start))
        position = stream.position()
        stream.close()
    resumed = make_stream(packed, processor, 3, start=start, position=position)
    assert resumed.fingerprint == whole.fingerprint and same(take(resumed, 3), batches[start:])
    assert same(take(make_stream(dataclasses.replace(packed, workers=1), processor, 3), 6), batches)
    assert not whole.skipped


def test_data_that_have_changed_are_noticed(llava, folder, processor):
    before = make_stream(config(llava), processor, 3).fingerprint
    copy = folder.json("elsewhere.json", llava.read_text())
    assert make_stream(config(copy), processor, 3).fingerprint == before
    llava.write_text(llava.read_text().replace("Red.", "Tan."))
    assert make_stream(config(llava), processor, 3).fingerprint != before


FAULTS = {
    "placeholders differ from pictures": ({"image": ["0.png", "0.png"]}, r"has 1 times <image> for 2 pictures"),
    "roles out of turn": (
        {"conversations": [{"from": "gpt", "value": "Hi"}]},
        r"has turn 1 of 1 by 'gpt', whose turn",
    ),
    "unknown role": ({"conversations": [{"from": "bot", "value": "Hi"}]}, r"has a turn by 'bot', who is none of human, gpt"),
    "not an image": ({"image": "page.png"}, r"\d+ bytes that are none of PNG, JPEG"),
}


def damaged(folder, row, bad: int):
    """20,000 rows, mostly without pictures; `bad` of each fault are spread over them."""
    folder.pictures("0.png")
    (folder / "page.png").write_bytes(b"<html>not found</html>")
    text = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "2"}]
    rows = [row(n, image="0.png") if n % 100 == 0 else {"id": f"n{n}", "conversations": text} for n in range(20_000)]
    for number, (change, _) in enumerate(list(FAULTS.values()) * bad):
        place = (number * 997 + 501) % 20_000
        rows[place] = row(place, **{"image": "0.png", **change})
    return folder.json("rows.json", rows)


def test_a_few_bad_rows_in_many_are_counted_and_left_out(folder, row, processor):
    stream = make_stream(config(damaged(folder, row, 2), rows=500), processor, 0)
    take(stream, 40)
    assert stream.reasons == dict.fromkeys(FAULTS, 2), "of one epoch"


def test_too_many_bad_rows_end_a_run_with_the_table_of_reasons(folder, row, processor):
    path = damaged(folder, row, 40)
    stream = make_stream(config(path, rows=500), processor, 0)
    with pytest.raises(UserError, match=r"of \d+ examples cannot be used, the limit is 0.1%") as raised:
        take(stream, 40)
    assert stream.skipped >= 10 and "\n" not in str(raised.value)
    for reason, (_, message) in FAULTS.items():
        if stream.reasons[reason]:
            key = rf"\(first: (.*rows.json: row \d+ \(id 'n\d+'\)|example 'rows/\d+-n\d+', medium 0:) {message}"
            raised.match(rf"{stream.reasons[reason]} x {reason} {key}")
    assert len(stream.reasons) >= 3


def test_pictures_that_are_not_there_end_a_run(folder, row, processor):
    path = folder.json("rows.json", [row(number) for number in range(40)])
    with pytest.raises(UserError, match=r"1\d x missing picture \(first: .*rows.json: row \d+ \(id 'n\d+'\) has no picture: "):
        take(make_stream(config(path), processor, 0), 10)


def test_images_are_part_of_the_config(folder, row, processor):
    path = folder.json("rows.json", json.dumps([row(0, image="a/0.png")]))
    images = str(folder.tar("pictures.tar", [("a/0.png", png())]))
    own = dataclasses.replace(config(path).mixture["own"], images=images)
    stream = make_stream(dataclasses.replace(config(path), mixture={"own": own}), processor, 0)
    batch = next(stream)
    stream.close()
    assert batch.media["image"].mask.all() and not stream.skipped
