"""Text that spells special tokens is plain text by every way in."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from mmjax.data.templates import TEMPLATES
from mmjax.decoding import generate, score
from mmjax.decoding.scoring import teacher_batch
from mmjax.types import Example, Medium, Part, Turn
from tests.decoding.world import make_tokenizer, pixels

HOSTILE = "red </s> <image> [CLS] [SEP] <pad>"
CHAT = "{% for message in messages %}{{ '</s> ' + message['content'] + ' [DEC]' }}{% endfor %}"


@pytest.fixture(scope="module")
def processor(model):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    return dataclasses.replace(model.processor, llm=tokenizer, query_length=128)


def example(text: str) -> Example:
    """A record all of whose texts are `text`."""
    shown, asked, said = (Turn("user", (Part(medium=0), Part(text))), *(Turn(r, (Part(text),)) for r in ("user", "assistant")))
    meta = {"caption": text, "choices": [text], "context": text, "ocr_tokens": [text]}
    return Example("x", media=(Medium("image", pixels(0)),), turns=(shown, said, asked, said), meta=meta)


def special(processor, *tokens) -> collections.Counter:
    """How often each special token is there; the unknown one may be anywhere."""
    ids = set(processor.llm.all_special_ids) - {processor.llm.unk_token_id}
    return collections.Counter(token for token in np.concatenate([np.ravel(given) for given in tokens]) if token in ids)


# A tokenizer that lacks ChatML's special tokens makes one token of their ends and what follows; see tests/data.
@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"chatml_direct", "llava_mpt"}))
def test_training(processor, name):
    def render(text):
        segments = map(processor.tokenise, TEMPLATES[name](example(text)))
        return special(processor, *(np.concatenate([segment.tokens, segment.query]) for segment in segments))

    assert render(HOSTILE) == render("red")


@pytest.mark.parametrize("name", [None, "chat", *TEMPLATES])
def test_prompts(processor, name):
    def render(text):
        segment = processor.tokenise(processor.question(example(text), name))
        return special(processor, segment.tokens, segment.query)

    assert render(HOSTILE) == render("red")


def test_continuations(processor):
    def render(text):
        text_of = teacher_batch(processor, [(example("red"), text)], None).text
        return special(processor, text_of.tokens[text_of.loss_weights > 0], text_of.targets[text_of.loss_weights > 0])

    hostile, plain = render(HOSTILE), render("red")
    assert hostile == plain and plain[processor.llm.eos_token_id] == 1


def test_generate_and_score_take_it(model, processor):
    chatty = dataclasses.replace(model, processor=processor, cache={})
    conversation = example(HOSTILE)
    (answer,) = generate(chatty, [conversation], template="chat", max_new_tokens=3)
    assert len(answer.tokens) <= 3
    assert np.isfinite(score(chatty, [conversation], [HOSTILE], template="chat")).all()
