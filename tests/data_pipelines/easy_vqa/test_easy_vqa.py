"""Easy-VQA: pictures keep all their questions, and the kinds cover the whole release."""

from __future__ import annotations

import json
from collections import Counter

import pytest

import data_pipelines
from data_pipelines import easy_vqa
from mmjax.data.records import open_source
from mmjax.types import Part, UserError


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what color is the shape?", "colour"),
        ("what is the color of the circle?", "colour"),
        ("what shape is in the image?", "shape"),
        ("what is the red shape?", "shape"),
        ("is there not a red shape in the image?", "absent"),
        ("is no circle present?", "absent"),
        ("does the image not contain a teal shape?", "absent"),
        ("does the image contain a circle?", "exists"),
        ("is there a circle?", "exists"),
    ],
)
def test_kinds(question, kind):
    assert easy_vqa.kind(question) == kind


def test_a_question_of_no_known_form_is_an_error():
    with pytest.raises(ValueError, match="known form, got 'why"):
        easy_vqa.kind("why?")


@pytest.mark.parametrize(
    ("questions", "caption"),
    [
        ((("what is the red shape?", "triangle"), ("is there a blue shape?", "no")), "a red triangle"),
        ((("what color is the shape?", "teal"), ("is no circle present?", "yes")), "a teal shape"),
        ((("does the image not contain a circle?", "no"), ("is there not a red shape?", "yes")), "a circle"),
        ((("is there a gray shape?", "yes"), ("is a circle present?", "yes")), "a gray circle"),
        ((("is there a gray shape?", "no"),), "a shape"),
    ],
)
def test_a_caption_says_what_the_answers_say(questions, caption):
    assert easy_vqa.caption(questions) == caption


def test_the_whole_release_is_grouped_by_picture():
    release = easy_vqa.find_release(None)
    train, test = (easy_vqa.pictures(release, split) for split in ("train", "test"))
    assert [len(train), len(test)] == [4000, 1000]
    assert [sum(len(picture.questions) for picture in split) for split in (train, test)] == [38_575, 9_673]
    answers = {"colour": set(), "shape": set(), "absent": set(), "exists": set()}
    for picture in train + test:
        for question, answer in picture.questions:
            answers[easy_vqa.kind(question)].add(answer)
    assert {kind: len(found) for kind, found in answers.items()} == {"colour": 8, "shape": 3, "absent": 2, "exists": 2}


def test_prepared_examples_are_those_of_the_release(tmp_path):
    out = tmp_path / "easy_vqa"
    assert data_pipelines.prepare("easy_vqa", out, limit=20)
    release, source = easy_vqa.find_release(None), open_source(out, "test")
    picture = easy_vqa.pictures(release, "test")[11]
    example = source[11]
    assert len(source) == 20 and example.id == "easy_vqa/test/11"
    assert example.media[0].data == (release / "test" / "images" / "11.png").read_bytes()
    assert tuple((q.text, a.text) for q, a in zip(example.turns[::2], example.turns[1::2], strict=True)) == picture.questions
    assert Counter(part for turn in example.turns for part in turn.parts)[Part(medium=0)] == 1
    assert len(example.meta["kinds"]) == len(picture.questions) and example.meta["caption"] == easy_vqa.caption(
        picture.questions
    )
    assert (out / "tokenizer" / "tokenizer_config.json").is_file()


def test_a_raw_folder_is_read_in_its_place(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "raw" / split).mkdir(parents=True)
        (tmp_path / "raw" / split / "questions.json").write_text(json.dumps([["is there a circle?", "yes", 3]]))
    assert easy_vqa.pictures(easy_vqa.find_release(tmp_path / "raw"), "train")[0].number == 3


def test_a_missing_release_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"questions\.json.*--raw"):
        easy_vqa.find_release(tmp_path)
    monkeypatch.setattr(easy_vqa.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install easy-vqa"):
        easy_vqa.find_release(None)
