"""Readers of downloaded releases: tiny ones in the files' true layout, from the command's function to Examples."""

from __future__ import annotations

import importlib
import json

import pytest

import data_pipelines
from data_pipelines.registry import MODULES
from data_pipelines.release import read_rows
from mmjax.data.exchanges import captions_of, single_questions
from mmjax.data.files.pictures import inside
from mmjax.data.segments import MediumSlot
from mmjax.data.templates import TEMPLATES
from mmjax.types import UserError
from tests.data_pipelines.releases import prepared, write


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


def test_textcaps_has_a_row_for_each_caption(tmp_path):
    def row(number):
        return {
            "image_id": "ab",
            "caption_id": number,
            "caption_str": FIVE[number],
            "reference_strs": FIVE,
            "set_name": "train",
        }

    files = {
        "TextCaps_0.1_train.json": {"dataset_name": "textcaps", "data": [row(0), row(1)]},
        "TextVQA_Rosetta_OCR_v0.2_train.json": {"data": [{"image_id": "ab", "ocr_tokens": ["LG"]}]},
        "train_images/ab.jpg": None,
    }
    (example,) = prepared("textcaps", tmp_path, files)["train"]
    assert example.id == "textcaps/train/ab" and example.answers == tuple(FIVE) and len(example.media) == 1
    assert example.meta == {"image_id": "ab", "ocr_tokens": ["LG"]}


def test_aokvqa_has_open_answers_and_choices(tmp_path):
    row = {
        "split": "train", "image_id": 299207, "question_id": "22Mex", "question": "What is the man awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": 3,
        "direct_answers": ["ride"] * 3 + ["cab"] * 7, "difficult_direct_answer": False, "rationales": ["He waits.", "a", "b"],
    }  # fmt: skip
    files = {"aokvqa_v1p0_train.json": [row], "train2017/000000299207.jpg": None}
    (example,) = prepared("aokvqa", tmp_path, files)["train"]
    (question,) = single_questions(example)
    assert example.turns[1].text == "cab" and question.answers == tuple(row["direct_answers"])
    assert question.meta["choices"] == row["choices"] and question.meta["choice"] == "cab"


def book(split, extension="jpg", **fields):
    row = {"imageURL": f"http://ecx.images-amazon.com/images/I/x.{extension}", "questions": ["Who wrote this?", "Which year?"]}
    rest = {"answers": ["Sandra", "2016"], "title": "T", "authorName": "Sandra", "genre": "Calendars", "split": split}
    return row | rest | fields


def test_ocr_vqa_has_splits_by_number_and_covers_as_its_script_saves_them(tmp_path):
    files = {"dataset.json": {"761": book(1), "9": book(3, "png")}, "images/761.jpg": None, "images/9.png": None}
    splits = prepared("ocr_vqa", tmp_path, files)
    assert {split: [example.id for example in examples] for split, examples in splits.items()} == {
        "train": ["ocr_vqa/train/761"], "test": ["ocr_vqa/test/9"],
    }  # fmt: skip
    assert [one.answers for one in single_questions(splits["test"][0])] == [("Sandra",), ("2016",)]
    assert splits["test"][0].media[0].mime == "image/png"


def test_covers_that_are_gone_may_be_left_out_and_are_listed(tmp_path):
    files = {"dataset.json": {str(number): book(1) for number in range(3)}, "images/1.jpg": None}
    splits = prepared("ocr_vqa", tmp_path, files, skips=2)
    assert [example.id for example in splits["train"]] == ["ocr_vqa/train/1"]
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in skipped] == ["ocr_vqa/train/0", "ocr_vqa/train/2"]
    assert "images/0.jpg: No such file" in skipped[0]["reason"]


def test_a_picture_more_than_may_be_left_out_is_an_error(tmp_path):
    files = {"dataset.json": {str(number): book(1) for number in range(3)}, "images/1.jpg": None}
    with pytest.raises(UserError, match=r"ocr_vqa/train/2 has no picture: .*--skips=1: so many"):
        prepared("ocr_vqa", tmp_path, files, skips=1)
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_left_out_whole_is_an_error(tmp_path):
    with pytest.raises(UserError, match="ocr_vqa: the split train has 2 items, and not one gives an example"):
        prepared("ocr_vqa", tmp_path, {"dataset.json": {"1": book(1), "2": book(1)}}, skips=2)


GENOME = {
    "image_data.json": [
        {
            "image_id": 1,
            "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg",
            "coco_id": None,
            "width": 4,
            "height": 3,
        },
        {"image_id": 71, "url": "https://cs.stanford.edu/people/rak248/VG_100K/71.jpg", "coco_id": 42, "width": 4, "height": 3},
    ],
    "VG_100K_2/1.jpg": None,
    "VG_100K/71.jpg": None,
}


def test_visual_genome_has_a_caption_for_each_region(tmp_path):
    def regions(image, *phrases):
        return {"id": image, "regions": [{"region_id": 1, "image_id": image, "phrase": text, "x": 0} for text in phrases]}

    files = GENOME | {"region_descriptions.json": [regions(1), regions(71, "a red sign", "the clock is green")]}
    (example,) = prepared("visual_genome_caption", tmp_path, files)["train"]
    assert example.answers == ("a red sign", "the clock is green") and example.turns == ()
    assert example.meta == {"image_id": 71, "coco_id": 42}
    assert example.media[0].data == (tmp_path / "raw/VG_100K/71.jpg").read_bytes()


def test_visual_genome_has_questions(tmp_path):
    def asked(image, *texts):
        return {"id": image, "qas": [{"qa_id": n, "image_id": image, "question": text, "answer": "Red."} for n, text in texts]}

    files = GENOME | {"question_answers.json": [asked(1, (986768, "What colour?"), (7, "Which?")), asked(71)]}
    (example,) = prepared("visual_genome_qa", tmp_path, files)["train"]
    first, second = single_questions(example)
    assert first.answers == ("Red.",) and [first.meta["question_id"], second.meta["question_id"]] == [986768, 7]
    assert example.media[0].data == (tmp_path / "raw/VG_100K_2/1.jpg").read_bytes()


def test_many_questions_make_several_examples(tmp_path):
    qas = [{"qa_id": n, "question": f"Question {n}?", "answer": str(n)} for n in range(19)]
    files = GENOME | {"question_answers.json": [{"id": 1, "qas": qas}]}
    examples = prepared("visual_genome_qa", tmp_path, files)["train"]
    assert [example.id for example in examples] == [f"visual_genome_qa/train/1{end}" for end in ("", "+1", "+2")]
    singles = [one for example in examples for one in single_questions(example)]
    assert [(one.turns[0].text, *one.answers, one.meta["question_id"]) for one in singles] == [
        (f"Question {n}?", str(n), n) for n in range(19)
    ]
    assert all(one.media == examples[0].media and one.turns[0].media == (0,) for one in singles)


def test_flickr30k_has_karpathys_splits(tmp_path):
    def row(name, split):
        return {"filename": name, "imgid": 0, "split": split, "sentids": [0], "sentences": [{"raw": text} for text in FIVE]}

    files = {
        "dataset_flickr30k.json": {"images": [row("36979.jpg", "test"), row("65567.jpg", "train")], "dataset": "flickr30k"},
        "flickr30k-images/36979.jpg": None,
        "flickr30k-images/65567.jpg": None,
    }
    splits = prepared("flickr30k", tmp_path, files)
    assert [len(splits[split]) for split in ("train", "test")] == [1, 1]
    assert splits["test"][0].id == "flickr30k/test/36979" and splits["test"][0].answers == tuple(FIVE)


def test_nocaps_has_domains(tmp_path):
    image = {"id": 0, "file_name": "0013ea.jpg", "open_images_id": "0013ea", "coco_url": "https://x/0013ea.jpg"}
    files = {
        "nocaps_val_4500_captions.json": {
            "images": [{**image, "domain": "in-domain"}, {**image, "id": 7, "file_name": "b.jpg", "domain": "out-domain"}],
            "annotations": [
                {"image_id": 7, "caption": "a baby"},
                {"image_id": 0, "caption": "a man"},
                {"image_id": 7, "caption": "b"},
            ],
        },
        "images/0013ea.jpg": None,
        "images/b.jpg": None,
    }
    examples = prepared("nocaps", tmp_path, files)["val"]
    assert [example.answers for example in examples] == [("a man",), ("a baby", "b")]
    assert [example.meta["domain"] for example in examples] == ["in-domain", "out-domain"]


def test_minigpt4_descriptions(tmp_path):
    rows = [{"image_id": "2", "caption": "The image shows a dog."}, {"image_id": "13", "caption": "A cat."}]
    files = {"filter_cap.json": {"annotations": rows}, "image/2.jpg": None, "image/13.jpg": None}
    first, second = prepared("cc_sbu_align", tmp_path / "good", files)["train"]
    assert captions_of(first) == ("The image shows a dog.",) and first.turns == () and second.id == "cc_sbu_align/train/13"
    files["filter_cap.json"] = {"annotations": [{"image_id": "../../secret", "caption": "A cat."}]}
    with pytest.raises(UserError, match=r"filter_cap.json names a picture outside of its directory: '../../secret.jpg'"):
        prepared("cc_sbu_align", tmp_path / "bad", files)


def test_vizwiz_keeps_ten_answers(tmp_path):
    people = ["night time"] * 6 + ["unanswerable"] * 4
    row = {
        "image": "VizWiz_val_00000001.jpg", "question": "What is this please?", "answer_type": "other", "answerable": 1,
        "answers": [{"answer": text, "answer_confidence": "yes"} for text in people],
    }  # fmt: skip
    files = {"Annotations/val.json": [row], "val/VizWiz_val_00000001.jpg": None}
    (example,) = prepared("vizwiz", tmp_path, files)["val"]
    (question,) = single_questions(example)
    assert question.answers == tuple(people) and example.turns[1].text == "night time"
    assert question.meta["kind"] == "other" and question.meta["question_id"] == "VizWiz_val_00000001.jpg"


def test_iconqa_has_the_problems_with_choices_in_words(tmp_path):
    words = {"question": "How likely?", "choices": ["certain", "unlikely"], "answer": "1", "ques_type": "choose_txt"}
    blank = {"question": "How many?", "choices": None, "answer": "7", "ques_type": "fill_in_blank"}
    splits = {"choose_txt_train": [], "choose_txt_val": [], "choose_txt_test": ["12"], "fill_in_blank_test": ["5"]}
    files = {
        "problems.json": {"12": words | {"split": "test"}, "5": blank | {"split": "test"}},
        "pid_splits.json": splits,
        "iconqa/test/choose_txt/12/image.png": None,
    }
    (example,) = prepared("iconqa", tmp_path, files)["test"]
    assert example.id == "iconqa/test/12" and example.turns[1].text == "unlikely"
    prompt = TEMPLATES["choices_short"].prompt(example, 0).parts[-1].text
    assert prompt == "Question: How likely? Options: (a) certain (b) unlikely. Short answer:"


def test_vsr_asks_whether_statements_are_true(tmp_path):
    def line(caption, label):
        facts = {"image": "000000050403.jpg", "image_link": "http://x", "caption": caption, "label": label, "annotator_id": 31}
        return json.dumps(facts | {"relation": "in front of", "vote_true_validator_id": [2], "vote_false_validator_id": []})

    files = {
        "splits/zeroshot/test.jsonl": f"{line('The bear is in front of it.', 1)}\n{line('It is far.', 0)}\n",
        "images/000000050403.jpg": None,
    }
    (example,) = prepared("vsr", tmp_path, files)["test"]
    first, second = single_questions(example)
    assert (first.answers, second.answers) == (("yes",), ("no",)) and first.meta["choices"] == ["no", "yes"]
    assert first.meta["kind"] == "in front of"
    assert TEMPLATES["statement"].prompt(second, 0).parts[-1].text == (
        'Based on the image, is this statement true or false? "It is far." Answer:'
    )


def test_hateful_memes_leaves_out_what_has_no_label(tmp_path):
    files = {
        "dev_seen.jsonl": '{"id": 8291, "img": "img/08291.png", "label": 1, "text": "look at this"}\n',
        "test_seen.jsonl": '{"id": 16395, "img": "img/16395.png", "text": "and this"}\n',
        "img/08291.png": None,
    }
    splits = prepared("hateful_memes", tmp_path, files)
    assert list(splits) == ["dev_seen"]
    (question,) = single_questions(splits["dev_seen"][0])
    assert question.answers == ("yes",) and question.meta["choices"] == ["no", "yes"] and question.meta["question_id"] == 8291
    assert TEMPLATES["meme"].prompt(question, 0).parts[-1].text == (
        'This is an image with: "look at this" written on it. Is it hateful? Answer:'
    )


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"a": 1},\n {"b": "[é"}]', [{"a": 1}, {"b": "[é"}]),
        ('\n {"a": 1}\n\n{"b": 2}', [{"a": 1}, {"b": 2}]),
        ('{"a": "one\u2028line"}\r\n{"b": 2}\r\n', [{"a": "one\u2028line"}, {"b": 2}]),
        ('\ufeff[{"a": 1}]', [{"a": 1}]),
        (" []", []),
    ],
)
def test_rows_of_lists_and_of_lines(tmp_path, text, rows):
    (tmp_path / "rows").write_text(text, encoding="utf-8")
    assert read_rows(tmp_path / "rows") == rows


def test_names_that_leave_a_release():
    assert all(map(inside, ("a.jpg", "a/b..c.jpg", "coco/train2017/1.jpg")))
    assert not any(map(inside, ("/etc/passwd", "../a.jpg", "a/../../b.jpg", "a\0.jpg")))


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("coco_caption", {"captions.json": {}}, "expected dataset_coco.json or captions_train2014.json or captions_val2014"),
        ("vqav2", {"v2_OpenEnded_mscoco_val2014_questions.json": {}}, "v2_mscoco_val2014_annotations.json"),
        ("coco_caption", {"dataset_coco.json": '{"images": ['}, "dataset_coco.json is no whole JSON file"),
        ("coco_caption", {"dataset_coco.json": {"pictures": []}}, "dataset_coco.json is not the file.*'images' is missing"),
        ("coco_caption", {"dataset_coco.json": [1]}, "dataset_coco.json is not the file"),
        (
            "textcaps",
            {"TextCaps_0.1_train.json": {"data": [{"image_id": "a"}]}},
            "TextCaps_0.1_train.json is not.*'reference_strs'",
        ),
        ("aokvqa", {"aokvqa_v1p1_train.json": []}, "expected aokvqa_v1p0_train.json or aokvqa_v1p0_val.json"),
        ("ocr_vqa", {"dataset.json": {"7": {}}}, "dataset.json is not the file.*'split' is missing"),
        ("visual_genome_qa", {"image_data.json": []}, "expected image_data.json and question_answers.json"),
        ("visual_genome_qa", GENOME | {"question_answers.json": [{"id": 2, "qas": []}]}, "the key 2 is missing"),
        ("flickr30k", {"dataset_flickr30k.json": '{"im'}, "dataset_flickr30k.json is no whole JSON file"),
        ("vsr", {"splits/zeroshot/dev.jsonl": '{"image": "a.jpg"}'}, "dev.jsonl is not the file.*'relation' is missing"),
        ("hateful_memes", {"test_seen.jsonl": '{"id": 1, "img": "img/1.png", "text": ""}'}, "raw holds not one example"),
        ("iconqa", {"problems.json": {}}, "expected problems.json and pid_splits.json"),
        ("pope", {"coco_pope_random.json": '{"question_id": 1}\n{"que'}, "coco_pope_random.json"),
    ],
)
def test_a_wrong_or_damaged_release_is_one_line(tmp_path, name, files, message):
    raw = write(tmp_path / "raw", files)
    with pytest.raises(UserError, match=message) as raised:
        data_pipelines.prepare(name, tmp_path / "out", raw)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"shapes", "easy_vqa", "smollm2"}))
def test_a_release_is_asked_for(tmp_path, name):
    with pytest.raises(
        UserError, match=f"{name} is read from a download .*: give launch.prepare --raw, a directory that holds"
    ):
        data_pipelines.prepare(name, tmp_path / "out")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_makes_the_data_sets_of_its_names(name):
    assert callable(importlib.import_module(f"data_pipelines.{MODULES[name]}").DATASETS[name])


def test_a_missing_picture_is_named(tmp_path):
    files = {name: content for name, content in KARPATHY.items() if "073" not in name}
    with pytest.raises(UserError, match=r"coco_caption/test/73 has no picture: .*COCO_val2014_000000000073.jpg: No such"):
        prepared("coco_caption", tmp_path, files)


def test_a_question_without_annotation_is_told(tmp_path):
    files = vqa_files("v2_", PEOPLE)
    files["v2_mscoco_val2014_annotations.json"]["annotations"].pop()
    with pytest.raises(UserError, match=r"v2_mscoco_val2014_annotations.json is not .*: the key 3 is missing"):
        prepared("vqav2", tmp_path, files)
