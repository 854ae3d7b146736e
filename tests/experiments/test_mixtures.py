"""The recipes' mixtures, read from releases in the true layout of their files: every set is drawn and nothing is left out."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import io
import itertools
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import data_pipelines
from mmjax.data.processor import Processor
from mmjax.data.records import open_source
from mmjax.data.stream import make_stream
from mmjax.training.stage import Experiment
from mmjax.types.config import from_config
from tests.data_pipelines.releases import write

CAPTIONS = ["A dog runs.", "a dog on grass", "the dog", "one dog", "a running dog"]


def conversation(turns):
    said = [("<image>\nWhat is it?" if not turn else "And why?", "It is a dog, for it runs.") for turn in range(turns)]
    return [{"from": speaker, "value": text} for pair in said for speaker, text in zip(("human", "gpt"), pair, strict=True)]


def llava(file, turns):
    row = {"id": "000000000007", "image": "000000000007.jpg", "conversations": conversation(turns)}
    return {file: [row], "train2017/000000000007.jpg": None}


def vqa(prefix, count, split="train"):
    people = [{"answer": "dog", "raw_answer": "dogs", "answer_id": 1}] * 10
    asked = [{"image_id": 7, "question": f"What is thing {n}?", "question_id": n} for n in range(count)]
    annotated = [
        {"question_id": n, "image_id": 7, "question_type": "what", "answer_type": "other", "answers": people}
        for n in range(count)
    ]
    return {
        f"{prefix}OpenEnded_mscoco_{split}2014_questions.json": {"questions": asked},
        f"{prefix}mscoco_{split}2014_annotations.json": {"annotations": annotated},
        f"{split}2014/COCO_{split}2014_000000000007.jpg": None,
    }


GENOME = {
    "image_data.json": [{"image_id": 1, "url": "https://x/VG_100K/1.jpg", "coco_id": None}],
    "VG_100K/1.jpg": None,
}
RELEASES = {
    "coco_caption": {
        "dataset_coco.json": {
            "images": [
                {
                    "filepath": "train2014", "filename": "7.jpg", "cocoid": 7, "split": "train",
                    "sentences": [{"raw": text} for text in CAPTIONS],
                }
            ]
        },
        "train2014/7.jpg": None,
    },
    **{
        name: {"list.json": [{"image": "a.jpg", "caption": "a dog"}], "a.jpg": None}
        for name in ("web_capfilt", "laion_capfilt", "cc_sbu_capfilt")
    },
    "cc_sbu_align": {
        "filter_cap.json": {"annotations": [{"image_id": "2", "caption": "The image shows a dog."}]}, "image/2.jpg": None,
    },
    "textcaps": {
        "TextCaps_0.1_train.json": {"data": [{"image_id": "ab", "reference_strs": CAPTIONS}]}, "train_images/ab.jpg": None,
    },
    "vqav2": vqa("v2_", 11) | vqa("v2_", 3, "val"),
    "okvqa": vqa("", 2),
    "aokvqa": {
        "aokvqa_v1p0_train.json": [
            {
                "image_id": 7, "question_id": "x", "question": "Why?", "choices": ["dog", "cat"], "correct_choice_idx": 0,
                "direct_answers": ["dog"] * 10, "rationales": [],
            }
        ],
        "train2017/000000000007.jpg": None,
    },
    "ocr_vqa": {
        "dataset.json": {
            "7": {
                "imageURL": "http://x/7.jpg", "questions": ["Who?"] * 9, "answers": ["Me"] * 9, "split": 1,
                "title": "T", "authorName": "A", "genre": "G",
            }
        },
        "images/7.jpg": None,
    },
    "llava_conversation": llava("conversation_58k.json", 5),
    "llava_detail": llava("detail_23k.json", 1),
    "llava_reasoning": llava("complex_reasoning_77k.json", 1),
    "visual_genome_qa": GENOME | {
        "question_answers.json": [{"id": 1, "qas": [{"qa_id": n, "question": "Which?", "answer": "Dog."} for n in range(19)]}]
    },
    "visual_genome_caption": GENOME | {
        "region_descriptions.json": [{"id": 1, "regions": [{"phrase": text} for text in CAPTIONS * 10]}]
    },
}  # fmt: skip


def web_tar(raw):
    """Three samples as img2dataset stores them."""
    raw.mkdir(parents=True)
    with tarfile.open(raw / "00000.tar", "w") as tar:
        for number in range(3):
            stream = io.BytesIO()
            Image.new("RGB", (9, 7), (number, 0, 0)).save(stream, "JPEG")
            facts = {"caption": "a dog", "url": "http://x"}
            for extension, data in (("jpg", stream.getvalue()), ("json", json.dumps(facts).encode()), ("txt", b"a dog")):
                member = tarfile.TarInfo(f"{number:09d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with `data/<name>` of every set that the recipes learn."""
    root = tmp_path_factory.mktemp("mixtures")
    for name, files in RELEASES.items():
        data_pipelines.prepare(name, root / "data" / name, write(root / "raw" / name, files))
    for name in ("cc3m", "cc12m", "sbu", "laion400m"):
        web_tar(root / "raw" / name)
        data_pipelines.prepare(name, root / "data" / name, root / "raw" / name)
    return root


def words() -> PreTrainedTokenizerFast:
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "[CLS]"}
    names = [*special.values(), "[SEP]", "[DEC]"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, sep_token="[SEP]", additional_special_tokens=["[DEC]"]
    )  # fmt: skip


class Watched:
    """A source that counts how often it is read."""

    def __init__(self, source, name, reads):
        self.source, self.name, self.reads = source, name, reads

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads[self.name] += 1
        return self.source[index]


@pytest.mark.parametrize(
    ("module", "arg", "count"),
    [
        ("instructblip.instruct", "", 13),
        ("instructblip.instruct", "llm=flan_t5_xl", 13),
        ("blip2.vqa", "", 3),
        ("blip2.vqa", "held_out,llm=flan_t5_xl", 2),
        ("blip2.stage1", "", 6),
        ("blip2.stage2", "llm=flan_t5_xl", 6),
        ("blip2.stage2", "preset=upstream", 2),
        ("minigpt4.stage1", "", 2),
        ("minigpt4.stage2", "", 1),
    ],
)
def test_every_set_is_drawn_and_nothing_is_left_out(prepared, module, arg, count):
    experiment = from_config(Experiment, importlib.import_module(f"experiments.{module}").get_config(arg))
    (stage,) = experiment.stages.values()
    config = dataclasses.replace(stage.data, image_size=8, rows=4, window=96, rand_augment=0)
    reads = collections.Counter()

    def open_watched(path, split, limit):
        return Watched(open_source(prepared / path, split, limit), f"{path}/{split}", reads)

    processor = Processor(words(), words(), encoder_decoder=bool(config.source_length))
    stream = make_stream(config, processor, 0, open_source=open_watched)
    batches = list(itertools.islice(stream, 6))
    stream.close()
    assert len(config.mixture) == count
    assert set(reads) == {f"{source.path}/{source.split}" for source in config.mixture.values()}
    assert stream.skipped == 0, stream.reasons
    assert all(batch.media["image"].mask.any() for batch in batches)
    if config.length:
        assert all(np.asarray(batch.text.loss_weights).any() for batch in batches)
