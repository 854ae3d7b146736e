"""`generate`: what goes in, what comes out, and that a picture makes a difference."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from PIL import Image

from mmjax.decoding import Answer, generate, score
from mmjax.decoding.generate import cut
from mmjax.types import Example, Medium, Part, Turn, UserError
from tests.decoding.world import make_example, pixels, png

PROMPT = "Question: What colour is there? Answer:"


def test_an_answer_is_text_that_remembers_its_tokens(model):
    (answer,) = generate(model, PROMPT, images=[[pixels(0)]], max_new_tokens=4)
    assert isinstance(answer, str) and isinstance(answer, Answer)
    assert len(answer.tokens) == len(answer.logprobs) <= 4 and (answer.logprobs <= 0).all()
    assert answer == model.processor.llm.decode(list(answer.tokens), skip_special_tokens=True).strip()
    for twin in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
        assert twin == answer and twin.tokens == answer.tokens


def test_all_forms_of_a_picture_give_the_same_answer(model, tmp_path):
    (tmp_path / "picture.png").write_bytes(png(3))
    forms = [pixels(3), png(3), str(tmp_path / "picture.png"), tmp_path / "picture.png", Image.fromarray(pixels(3))]
    answers = generate(model, [PROMPT] * 5, images=[[form] for form in forms], max_new_tokens=4)
    assert len({(answer, answer.tokens) for answer in answers}) == 1


def test_pictures_change_answers_and_batches_do_not(model):
    examples = [make_example(number) for number in range(10)]
    whole = generate(model, examples, template="question_answer", max_new_tokens=4)
    assert len({answer.tokens for answer in whole}) > 1
    parts = generate(model, examples, template="question_answer", max_new_tokens=4, batch_size=4)
    assert [answer.tokens for answer in whole] == [answer.tokens for answer in parts]
    drawn = generate(model, examples, template="question_answer", max_new_tokens=4, do_sample=True, seed=3, batch_size=4)
    alone = generate(model, examples[5:9], template="question_answer", max_new_tokens=4, do_sample=True, seed=8)
    assert drawn[5].tokens == alone[0].tokens


def test_a_medium_that_no_turn_shows_is_told(model):
    hidden = Example("x", media=(Medium("image", pixels(0)),) * 2, turns=(Turn("user", (Part(medium=0), Part(text="How?"))),))
    for ask in (lambda: generate(model, hidden), lambda: score(model, hidden, "red")):
        with pytest.raises(UserError, match=r"example 'x': 2 media, of which no part of a turn shows \[1\]"):
            ask()


def test_streamed_pieces_join_to_the_answer(model):
    options = dict(images=[[png(1)]], max_new_tokens=20, eos_token_id=())
    (answer,) = generate(model, [PROMPT], **options)
    pieces = list(generate(model, [PROMPT], stream=True, **options))
    assert "".join(pieces) == answer and len(pieces) > 1


def test_stop_strings_end_an_answer_in_a_piece(model):
    options = dict(images=[[png(1)]], max_new_tokens=20, eos_token_id=())
    (answer,) = generate(model, [PROMPT], **options)
    stop = answer.split()[2]
    (short,) = generate(model, [PROMPT], stop_strings=stop, **options)
    assert short == cut(answer, [stop]).strip() and len(short.tokens) < 20
    assert "".join(generate(model, [PROMPT], stop_strings=stop, stream=True, **options)) == short


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_tokens=3), "max_tokens"),
        (dict(images=[]), "one list per prompt, 1 in all, got 0"),
        (dict(images=[np.zeros((2, 2, 3), np.uint8)]), r"images=\[\["),
        (dict(images=[["nowhere.png"]]), "nowhere.png"),
        (dict(batch_size=0), "batch_size"),
        (dict(stream=True, num_beams=2), "num_beams=2"),
    ],
)
def test_mistakes_are_named(model, options, message):
    with pytest.raises(UserError, match=message):
        list(generate(model, [PROMPT], **options))
