"""LLaVA's form of conversations: pictures where they stand, and what is wrong with a row told by its key."""

from __future__ import annotations

import json

import pytest

import data_pipelines
from mmjax.data.segments import MediumSlot
from mmjax.data.templates import TEMPLATES
from mmjax.types import Part, UserError
from tests.data_pipelines.releases import prepared, write


def conversation(*texts, first="human"):
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]


ROW = {
    "id": "000000033471",
    "image": "000000033471.jpg",
    "conversations": conversation("<image>\nWhat colour is the bus?", "White and red.", "Is it full?", "No."),
}
PICTURE = {"train2017/000000033471.jpg": None}


def parts(turn):
    return [part.medium if part.text is None else part.text for part in turn.parts]


def one(tmp_path, row, **files):
    """The example of one row, beside the picture of ROW and two others."""
    others = {"a.png": None, "images/deep/b.jpg": None}
    (example,) = prepared("llava_conversation", tmp_path, {"conversation_58k.json": [row]} | PICTURE | others | files)["train"]
    return example


def test_a_conversation_keeps_its_turns_and_its_picture(tmp_path):
    example = one(tmp_path, ROW)
    assert example.id == "llava_conversation/train/0-000000033471" and example.meta == {"image_id": "000000033471.jpg"}
    assert [turn.role for turn in example.turns] == ["user", "assistant", "user", "assistant"]
    assert [parts(turn) for turn in example.turns] == [
        [0, "What colour is the bus?"],
        ["White and red."],
        ["Is it full?"],
        ["No."],
    ]
    assert example.media[0].data == (tmp_path / "raw/train2017/000000033471.jpg").read_bytes()
    segments = TEMPLATES["instruction"](example)
    assert [segment.parts[segment.answer].text for segment in segments] == [" White and red.", " No."]
    assert all(segment.parts[0] == MediumSlot(0) for segment in segments)


@pytest.mark.parametrize(
    ("text", "image", "expected"),
    [
        ("<image>\nWhat is it?", "a.png", [0, "What is it?"]),
        ("What is it?\n<image>", "a.png", ["What is it?", 0]),
        ("Is this <image> a cat?", "a.png", ["Is this", 0, "a cat?"]),
        ("<image>", "a.png", [0]),
        ("<image>\n<image> Which?", ["a.png", "deep/b.jpg"], [0, 1, "Which?"]),
        ("Is <image> or <image> red?", ["a.png", "deep/b.jpg"], ["Is", 0, "or", 1, "red?"]),
        (" no picture,\n as it stands ", None, [" no picture,\n as it stands "]),
        ("no picture either", [], ["no picture either"]),
    ],
)
def test_pictures_stand_where_their_placeholders_do(tmp_path, text, image, expected):
    row = {"id": 5, "image": image, "conversations": conversation(text, "Yes <b>.")}
    example = one(tmp_path, row if image is not None else {"id": 5, "conversations": row["conversations"]})
    assert parts(example.turns[0]) == expected and example.turns[1].parts == (Part("Yes <b>."),)
    assert len(example.media) == sum(isinstance(part, int) for part in expected)


def test_pictures_of_later_turns_are_counted_on(tmp_path):
    texts = ("<image> What?", "A cat.", "And <image>?", "A dog.")
    example = one(tmp_path, {"id": 1, "image": ["a.png", "deep/b.jpg"], "conversations": conversation(*texts)})
    assert parts(example.turns[2]) == ["And", 1, "?"]
    assert example.media[1].data == (tmp_path / "raw/images/deep/b.jpg").read_bytes()


def test_what_a_system_says_comes_first(tmp_path):
    row = {"id": 1, "conversations": [{"from": "system", "value": "Be kind."}, *conversation("Hello", "Hi")]}
    assert [turn.role for turn in one(tmp_path, row).turns] == ["system", "user", "assistant"]


def test_names_of_coco_are_found_in_either_year(tmp_path):
    files = {"conversation_58k.jsonl": json.dumps(ROW), "train2014/COCO_train2014_000000033471.jpg": None}
    (example,) = prepared("llava_conversation", tmp_path, files)["train"]
    assert example.media[0].mime == "image/jpeg"


def test_a_directory_of_own_files(tmp_path):
    own = {"id": "x", "conversations": conversation("Hello", "Hi")}
    files = {"train.json": [own, ROW], "val.json": json.dumps([own])} | PICTURE
    splits = prepared("conversations", tmp_path, files)
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 2, "val": 1}


BAD = {
    "counts less": (ROW | {"conversations": conversation("What?", "That.")}, "has 0 times <image> for 1 pictures"),
    "counts more": (ROW | {"conversations": conversation("<image><image>", "That.")}, "has 2 times <image> for 1 pictures"),
    "text only": ({"id": 3, "conversations": conversation("<image>", "That.")}, "has 1 times <image> for 0 pictures"),
    "starts wrong": (
        ROW | {"conversations": conversation("Hi", "<image>", first="gpt")},
        "has turn 1 of 2 by 'gpt', whose turn",
    ),
    "twice": (ROW | {"conversations": [*conversation("<image>"), *conversation("What?", "X")]}, "has turn 2 of 3 by 'human'"),
    "unknown": (
        ROW | {"conversations": [{"from": "bot", "value": "X"}]},
        "has a turn by 'bot', who is none of human, gpt, system",
    ),
    "no answer": (ROW | {"conversations": conversation("<image>What?")}, "does not end with an answer"),
    "empty": (ROW | {"conversations": []}, "does not end with an answer"),
    "answer": (ROW | {"conversations": conversation("What?", "<image>")}, "has <image> in a turn by 'gpt'"),
    "no picture": (ROW | {"image": "gone.jpg"}, "has no picture: .*raw has no gone.jpg, nor have images/, train2017/, … in it"),
    "outside": (ROW | {"image": "../../secret.jpg"}, "names a picture outside of .*raw: '../../secret.jpg'"),
    "half a pair": ({"id": 3, "conversations": conversation("Hi", "\ud83d")}, "cannot be stored: .*surrogates not allowed"),
    "no turns": ({"id": 3}, "has neither conversations nor a caption; its keys are id"),
    "no text": (ROW | {"conversations": [{"from": "human", "value": None}]}, "has a turn by 'human' without a text"),
}


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_told_by_its_key(tmp_path, row, message):
    files = {"detail_23k.json": [ROW, row]} | PICTURE
    with pytest.raises(UserError, match=rf"^llava_detail/train/1-\w+ {message}") as raised:
        prepared("llava_detail", tmp_path, files)
    assert len(str(raised.value).splitlines()) == 1 and "--skips=0" in str(raised.value)


def test_bad_rows_within_the_budget_are_listed(tmp_path):
    files = {"complex_reasoning_77k.json": [row for row, _ in BAD.values()] + [ROW]} | PICTURE
    splits = prepared("llava_reasoning", tmp_path, files, skips=len(BAD))
    assert [example.id for example in splits["train"]] == [f"llava_reasoning/train/{len(BAD)}-000000033471"]
    assert len((tmp_path / "out/skipped.jsonl").read_text().splitlines()) == len(BAD)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"other.json": []}, "expected detail_23k.json or detail_23k.jsonl"),
        ({"detail_23k.json": '[{"id": 1'}, "detail_23k.json is no whole JSON file"),
        ({"detail_23k.json": "[7]"}, "detail_23k.json is not the file that its name says"),
    ],
)
def test_a_wrong_or_damaged_file_is_one_line(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        data_pipelines.prepare("llava_detail", tmp_path / "out", write(tmp_path / "raw", files))
