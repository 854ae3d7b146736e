"""Readers of downloaded releases: tiny ones in the files' true layout, from the command's function to Examples."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

import data_pipelines
from mmjax.data.records import open_source, split_names
from mmjax.data.templates import TEMPLATES, MediumSlot, captions_of, single_questions
from mmjax.types import UserError


def write(raw, files):
    """Writes a release: texts and JSON values as they are, `None` as a picture whose colour is its own."""
    for number, (name, content) in enumerate(files.items()):
        file = raw / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            stream = io.BytesIO()
            Image.new("RGB", (4, 3), (number, 2 * number, 3 * number)).save(stream, "PNG" if name.endswith("png") else "JPEG")
            file.write_bytes(stream.getvalue())
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    return raw


def prepared(name, tmp_path, files):
    """{split: examples} of a data set made from these files."""
    raw = write(tmp_path / "raw", files)
    data_pipelines.prepare(name, tmp_path / "out", raw)
    out = tmp_path / "out"
    return {split: list(open_source(out, split)) for split in split_names(out)}


def karpathy_row(image, folder, split, captions):
    sentences = [{"raw": text, "tokens": text.split(), "sentid": i} for i, text in enumerate(captions)]
    name = f"COCO_{folder}_{image:012d}.jpg"
    return {"filepath": folder, "filename": name, "cocoid": image, "split": split, "sentids": [0], "sentences": sentences}


FIVE = [f"a boat number {i}" for i in range(5)]
KARPATHY = {
    "dataset_coco.json": {
        "images": [
            karpathy_row(9, "train2014", "train", FIVE),
            karpathy_row(42, "val2014", "restval", ["A cat."]),
            karpathy_row(73, "val2014", "test", FIVE[::-1]),
        ],
        "dataset": "coco",
    },
    "train2014/COCO_train2014_000000000009.jpg": None,
    "val2014/COCO_val2014_000000000042.jpg": None,
    "val2014/COCO_val2014_000000000073.jpg": None,
}
OFFICIAL = {
    "annotations/captions_val2014.json": {
        "images": [
            {"id": 42, "file_name": "COCO_val2014_000000000042.jpg"},
            {"id": 73, "file_name": "COCO_val2014_000000000073.jpg"},
            {"id": 99, "file_name": "COCO_val2014_000000000099.jpg"},  # nobody described it
        ],
        "annotations": [
            {"image_id": 73, "id": 1, "caption": "a dog"},
            {"image_id": 42, "id": 2, "caption": "a cat"},
            {"image_id": 73, "id": 3, "caption": "one dog"},
        ],
    },
    "val2014/COCO_val2014_000000000042.jpg": None,
    "val2014/COCO_val2014_000000000073.jpg": None,
}


def test_coco_captions_by_karpathys_splits(tmp_path):
    splits = prepared("coco_caption", tmp_path, KARPATHY)
    assert {split: [example.meta["image_id"] for example in found] for split, found in splits.items()} == {
        "train": [9, 42], "test": [73],
    }  # fmt: skip
    (test,) = splits["test"]
    assert test.id == "coco_caption/test/73" and test.answers == tuple(FIVE[::-1]) and test.turns == ()
    assert test.media[0].data == (tmp_path / "raw/val2014/COCO_val2014_000000000073.jpg").read_bytes()
    assert test.media[0].mime == "image/jpeg"


def test_templates_draw_one_of_the_captions(tmp_path):
    (example, _) = prepared("coco_caption", tmp_path, KARPATHY)["train"]
    assert captions_of(example) == tuple(FIVE)
    drawn = {TEMPLATES["caption"](example, seed)[0].parts[-2].text for seed in range(40)}
    assert drawn == set(FIVE)
    assert {TEMPLATES["caption_pair"](example, seed)[0].query for seed in range(40)} == set(FIVE)


def test_official_coco_captions(tmp_path):
    splits = prepared("coco_caption", tmp_path, OFFICIAL)
    assert list(splits) == ["val"]
    assert [(example.meta["image_id"], example.answers) for example in splits["val"]] == [
        (42, ("a cat",)), (73, ("a dog", "one dog")),
    ]  # fmt: skip


def vqa_files(prefix, answers):
    def annotation(number, image, kind, texts):
        people = [{"answer": text, "answer_confidence": "yes", "answer_id": i + 1} for i, text in enumerate(texts)]
        row = {"question_id": number, "image_id": image, "question_type": f"type {number}", "answer_type": kind}
        return row | {"multiple_choice_answer": texts[0], "answers": people}

    rows = [(1, 42, "Is it on?"), (2, 73, "How many?"), (3, 42, "What is it?")]
    kinds = ["yes/no", "number", "other"]
    return {
        f"{prefix}OpenEnded_mscoco_val2014_questions.json": {
            "questions": [{"image_id": image, "question": text, "question_id": n} for n, image, text in rows],
        },
        f"{prefix}mscoco_val2014_annotations.json": {
            "annotations": [annotation(n, image, kind, answers[n]) for (n, image, _), kind in zip(rows, kinds, strict=True)],
        },
        "val2014/COCO_val2014_000000000042.jpg": None,
        "val2014/COCO_val2014_000000000073.jpg": None,
    }


PEOPLE = {1: ["yes"] * 10, 2: ["2"] * 8 + ["3"] * 2, 3: ["lamp"] * 6 + ["light"] * 4}


def test_vqav2_keeps_ten_answers_and_types(tmp_path):
    splits = prepared("vqav2", tmp_path, vqa_files("v2_", PEOPLE))
    first, second = splits["val"]
    assert first.id == "vqav2/val/42" and first.meta["image_id"] == 42 and len(first.media) == 1
    singles = single_questions(first) + single_questions(second)
    assert [one.meta["question_id"] for one in singles] == [1, 3, 2]
    assert [one.answers for one in singles] == [tuple(PEOPLE[number]) for number in (1, 3, 2)]
    assert [one.meta["kind"] for one in singles] == ["yes/no", "other", "number"]
    assert singles[1].meta["question_type"] == "type 3" and singles[1].meta["image_id"] == 42
    segments = TEMPLATES["question_answer"](first)
    assert [segment.parts[segment.answer].text for segment in segments] == [" yes", " lamp"]
    assert all(segment.parts[0] == MediumSlot(0) for segment in segments)


def test_okvqa_keeps_raw_answers_beside_the_stemmed_ones(tmp_path):
    files = vqa_files("", PEOPLE)
    for row in files["mscoco_val2014_annotations.json"]["annotations"]:
        row.pop("multiple_choice_answer")
        for person in row["answers"]:
            person["raw_answer"] = person["answer"] + "s"
    (first, _) = prepared("okvqa", tmp_path, files)["val"]
    (_, lamp) = single_questions(first)
    assert lamp.answers == tuple(PEOPLE[3]) and lamp.meta["raw_answers"] == [text + "s" for text in PEOPLE[3]]
    assert first.turns[3].text == "lamp"


def test_gqa_has_kinds_by_structure_and_meaning(tmp_path):
    row = {"question": "Is it red?", "imageId": "n5", "answer": "no", "types": {"structural": "verify", "semantic": "attr"}}
    files = {
        "testdev_balanced_questions.json": {
            "07": row,
            "08": {**row, "question": "What?", "types": {"structural": "query", "semantic": "obj"}},
        },
        "images/n5.jpg": None,
    }
    (example,) = prepared("gqa", tmp_path, files)["testdev"]
    first, second = single_questions(example)
    assert example.id == "gqa/testdev/n5" and first.answers == ("no",)
    assert (first.meta["kind"], second.meta["semantic"], second.meta["question_id"]) == ("verify", "obj", "08")


def test_textvqa_keeps_people_and_recognised_words(tmp_path):
    row = {"question": "What brand?", "question_id": 5, "image_id": "ab", "answers": ["nokia"] * 4 + ["lg"] * 6}
    files = {
        "TextVQA_0.5.1_val.json": {"data": [row]},
        "TextVQA_Rosetta_OCR_v0.2_val.json": {"data": [{"image_id": "ab", "ocr_tokens": ["LG", "12:30"]}]},
        "train_images/ab.jpg": None,
    }
    (example,) = prepared("textvqa", tmp_path, files)["val"]
    (question,) = single_questions(example)
    assert question.answers == tuple(row["answers"]) and example.turns[1].text == "lg"
    prompt = TEMPLATES["vqa_ocr"].prompt(question, 0).parts[-1].text
    assert prompt == "OCR tokens: LG, 12:30. Question: What brand? Short answer:"


def test_scienceqa_has_choices_and_pictures_where_there_are_some(tmp_path):
    def problem(answer, image, hint):
        rest = {"task": "closed choice", "grade": "grade2", "subject": "s", "topic": "t", "lecture": "", "solution": ""}
        return {"question": "Which?", "choices": ["milk", "a stone"], "answer": answer, "image": image, "hint": hint, **rest}

    files = {
        "problems.json": {"1": problem(0, None, ""), "4": problem(1, "image.png", "Look."), "5": problem(0, None, "")},
        "pid_splits.json": {"train": ["5"], "val": [], "test": ["4", "1"], "minitest": ["1"]},
        "images/test/4/image.png": None,
    }
    splits = prepared("scienceqa", tmp_path, files)
    seen, read = splits["test"]
    assert (seen.meta["kind"], read.meta["kind"], len(seen.media), len(read.media)) == ("image", "text", 1, 0)
    (question,) = single_questions(seen)
    assert question.answers == ("a stone",) and question.meta["choices"] == ["milk", "a stone"]
    letters = TEMPLATES["choice_letters"](seen)[0]
    assert letters.parts[-3].text.splitlines() == [
        "Context: Look.", "Which?", "A. milk", "B. a stone",
        "Answer with the option's letter from the given choices directly.",
    ]  # fmt: skip
    assert letters.parts[letters.answer].text == " B"
    options = TEMPLATES["choices"](read)[0]
    assert options.parts[-3].text == "Question: Which? Options: (a) milk (b) a stone. Answer:"
    assert options.parts[options.answer].text == " milk"


def test_pope_joins_its_files_by_picture(tmp_path):
    def lines(*rows):
        keys = ("question_id", "image", "text", "label")
        return "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)

    name = "COCO_val2014_000000000042.jpg"
    files = {
        "coco_pope_random.json": lines((1, name, "Is there a cat?", "yes"), (2, name, "Is there a bus?", "no")),
        "coco_pope_popular.json": lines((1, name, "Is there a man?", "no")),
        f"val2014/{name}": None,
    }
    (example,) = prepared("pope", tmp_path, files)["test"]
    singles = single_questions(example)
    assert [one.answers for one in singles] == [("yes",), ("no",), ("no",)]
    assert [one.meta["kind"] for one in singles] == ["random", "random", "popular"]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("coco_caption", {"captions.json": {}}, "expected dataset_coco.json or captions_train2014.json or captions_val2014"),
        ("vqav2", {"v2_OpenEnded_mscoco_val2014_questions.json": {}}, "v2_mscoco_val2014_annotations.json"),
        ("coco_caption", {"dataset_coco.json": '{"images": ['}, "dataset_coco.json is no whole JSON file"),
        ("coco_caption", {"dataset_coco.json": {"pictures": []}}, "dataset_coco.json is not the file.*'images' is missing"),
        ("coco_caption", {"dataset_coco.json": [1]}, "dataset_coco.json is not the file"),
        ("pope", {"coco_pope_random.json": '{"question_id": 1}\n{"que'}, "coco_pope_random.json"),
    ],
)
def test_a_wrong_or_damaged_release_is_one_line(tmp_path, name, files, message):
    raw = write(tmp_path / "raw", files)
    with pytest.raises(UserError, match=message) as raised:
        data_pipelines.prepare(name, tmp_path / "out", raw)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["coco_caption", "vqav2", "okvqa", "gqa", "textvqa", "scienceqa", "pope"])
def test_a_release_is_asked_for(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is read from a download .*: give --raw, a directory that holds"):
        data_pipelines.prepare(name, tmp_path / "out")


def test_a_missing_picture_is_named(tmp_path):
    files = {name: content for name, content in KARPATHY.items() if "073" not in name}
    with pytest.raises(UserError, match=r"coco_caption/test/73 cannot be read: .*COCO_val2014_000000000073.jpg: No such"):
        prepared("coco_caption", tmp_path, files)


def test_a_question_without_annotation_is_told(tmp_path):
    files = vqa_files("v2_", PEOPLE)
    files["v2_mscoco_val2014_annotations.json"]["annotations"].pop()
    with pytest.raises(UserError, match=r"v2_mscoco_val2014_annotations.json is not .*: the key 3 is missing"):
        prepared("vqav2", tmp_path, files)
