"""The word-level tokenizer: fixed special ids, deterministic words, and no way to smuggle a special token in."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from data_pipelines import tokenizer
from data_pipelines.shapes import describe
from data_pipelines.shapes.scene import draw_scene
from mmjax.types import Example, Part, Turn

CORPUS = ["Two red circles, and a blue square", "How many red circles are there?", "a red Circle"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(CORPUS).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_special_tokens_have_their_ids(trained):
    names = ["<unk>", "<pad>", "</s>", "[CLS]", "[SEP]", "[DEC]", "<image>"]
    assert trained.convert_tokens_to_ids(names) == list(range(7))
    ids = ("unk", "pad", "bos", "eos", "cls", "sep")
    assert [getattr(trained, f"{name}_token_id") for name in ids] == [0, 1, 2, 2, 3, 4]
    assert set(trained.all_special_ids) == set(range(7))


def test_words_by_frequency_then_alphabet(trained):
    frequent, once = ["red", ":", "a", "circles"], [",", "?", "and", "answer", "are", "blue", "circle", "how", "many"]
    assert trained.convert_ids_to_tokens(range(7, 24)) == frequent + once + ["question", "square", "there", "two"]
    assert len(trained) == 24


def test_training_is_deterministic():
    first, again = (tokenizer.train(corpus).backend_tokenizer.to_str() for corpus in (CORPUS, reversed(CORPUS)))
    assert first == again


def test_case_and_spacing_do_not_matter_and_nothing_is_added(trained):
    assert trained("HOW many  circles?").input_ids == trained("how many circles ?").input_ids
    assert len(trained("how many circles?").input_ids) == 4
    assert trained("wombat red").input_ids == [0, trained.convert_tokens_to_ids("red")]


@pytest.mark.parametrize(
    "text", ["question: how many red circles are there? answer: two", "a red circle, and a blue square", ""]
)
def test_decoding_puts_words_and_punctuation_together(trained, text):
    assert trained.decode(trained(text).input_ids) == text


def test_special_tokens_are_dropped_on_request(trained):
    ids = [2, *trained("two circles").input_ids, 2, 1]
    assert trained.decode(ids, skip_special_tokens=True) == "two circles"


@pytest.mark.parametrize("text", ["</s>", "[CLS]", "<image> red", "a<pad>b", "[DEC][SEP]", "<unk>"])
def test_text_that_spells_a_special_token_is_plain_text(trained, text):
    ids = trained(text, split_special_tokens=True).input_ids
    assert ids and not set(ids) & set(range(1, 7))


def test_special_tokens_are_recognised_where_the_caller_means_them(trained):
    assert trained("[CLS] red </s>").input_ids == [3, trained.convert_tokens_to_ids("red"), 2]


def test_shapes_need_no_unknown_word():
    examples = [next(describe(draw_scene("train", index))) for index in range(1500)]
    made = tokenizer.train(text for example in examples for text in tokenizer.texts(example))
    assert len(made) == 51  # of all 48,000 scenes: 52; "five circles" of one colour are too rare for these
    for split in ("test", "pairs"):
        for index in range(50):
            texts = [*tokenizer.texts(next(describe(draw_scene(split, index)))), "Question: Answer:"]
            assert not any(0 in made(text).input_ids for text in texts)


def test_texts_of_an_example():
    turns = (Turn("user", (Part("What?"),)), Turn("assistant", (Part("that"),)))
    assert list(tokenizer.texts(Example(id="x", turns=turns, meta={"caption": "a cat"}))) == ["a cat", "What?", "that"]
    assert list(tokenizer.texts(Example(id="x", meta={"caption": ""}))) == []
