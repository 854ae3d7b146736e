"""A small world for the data tests: a word tokenizer, rendered examples, and sources that live in memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmjax.data.config import DataConfig, SourceConfig
from mmjax.data.processor import Processor
from mmjax.types import Example, Medium, Part, Turn

SPECIAL = ["<unk>", "<pad>", "</s>", "[CLS]", "[SEP]", "[DEC]", "<image>"]
WORDS = "a red blue square circle on the left . question : answer how many what colour is it ? there no yes 0 1 2 3".split()


def make_tokenizer(words=WORDS) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + list(words))}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        additional_special_tokens=["[DEC]", "<image>"],
    )


def png(seed: int = 0, size: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_example(number: int, questions: int = 2, image: bytes | None = None) -> Example:
    turns = []
    for i in range(questions):
        parts = (Part(medium=0),) if i == 0 else ()
        turns.append(Turn("user", (*parts, Part(text=f"How many {'red' if i % 2 else 'blue'} square ?"))))
        turns.append(Turn("assistant", (Part(text=str((number + i) % 4)),)))
    media = (Medium("image", png(number) if image is None else image, "image/png"),)
    meta = {"caption": f"A red square on the left {'. a circle' * (number % 3)}.", "kinds": ["count"] * questions}
    return Example(id=f"world/train/{number}", media=media, turns=tuple(turns), meta=meta)


class Sources:
    """`open_source` over lists of examples, by path; picklable."""

    def __init__(self, **lists):
        self.lists = lists

    def __call__(self, path, split, limit=0):
        return self.lists[path][: limit or None]


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def processor(tokenizer):
    return Processor(tokenizer, soft_tokens=3, image_size=8, query_length=12)


@pytest.fixture
def world():
    """Twenty-three examples of two questions."""
    return Sources(world=[make_example(i) for i in range(23)])


@pytest.fixture
def config():
    return DataConfig(
        mixture={"world": SourceConfig(path="world")},
        rows=4,
        length=32,
        media=1,
        queries=2,
        query_length=12,
        soft_tokens=3,
        image_size=8,
    )


@pytest.fixture(scope="session")
def sources():
    """Makes an `open_source` over lists of examples."""
    return Sources


@pytest.fixture(scope="session")
def example():
    """Makes an example: (number, questions, image bytes)."""
    return make_example
