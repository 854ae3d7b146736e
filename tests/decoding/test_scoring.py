"""`score` against the log-probabilities of decoding."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmjax.data.config import DataConfig, SourceConfig
from mmjax.data.processor import Processor
from mmjax.data.stream import make_stream
from mmjax.decoding import generate, score
from mmjax.decoding.scoring import token_scores
from mmjax.systems.parts import build_definition
from mmjax.types import Example, Medium, Model, Part, Turn, UserError
from tests.decoding.world import make_example, make_tokenizer, pixels


def test_a_generated_answer_scores_the_sum_of_its_log_probabilities(model):
    examples = [make_example(number) for number in range(16)]
    answers = generate(model, examples, template="question_answer", max_new_tokens=2, eos_token_id=())
    # Special tokens are not in the text, so only answers of ordinary words can be scored.
    pairs = [(example, answer) for example, answer in zip(examples, answers, strict=True) if min(answer.tokens) > 6]
    assert len(pairs) > 2
    examples, answers = zip(*pairs, strict=True)
    scores = score(model, examples, [str(answer) for answer in answers], template="question_answer", end=False)
    np.testing.assert_allclose(scores, [answer.logprobs.sum() for answer in answers], rtol=1e-4, atol=1e-5)


def test_the_loss_of_training_on_videos_is_the_score_of_their_answers(model):
    """What a batch of training and what a user asks show of a video are one and the same, frame by frame."""
    clips = [np.stack([pixels(7 * number + frame) for frame in range(6)]) for number in range(3)]

    def example(number):
        turns = (Turn("user", (Part(medium=0), Part(text="How many?"))), Turn("assistant", (Part(text=str(number)),)))
        return Example(f"films/{number}", media=(Medium("video", clips[number]),), turns=turns)

    examples = [example(number) for number in range(3)]
    sizes = {"rows": 3, "length": 32, "media": 4, "queries": 4, "query_length": 16, "soft_tokens": 3, "image_size": 12}
    config = DataConfig(mixture={"films": SourceConfig(path="films")}, **sizes)
    stream = make_stream(config, model.processor, 0, training=False, open_source=lambda *_: examples)
    batch = next(stream)
    stream.close()
    trained = (token_scores(model, batch).logprobs * batch.text.loss_weights).sum(1)
    asked = [str(number) for number in range(3)]
    np.testing.assert_allclose(score(model, examples, asked, template="question_answer"), trained, atol=1e-4)
    other = [Example(one.id, media=(Medium("video", clips[0][::-1].copy()),), turns=one.turns) for one in examples]
    assert np.abs(score(model, other, asked, template="question_answer") - trained).max() > 1e-3, "frames have an order"


def test_videos_are_scored_as_prompts_of_strings_too(model):
    clip = np.stack([pixels(frame) for frame in range(4)])
    by_frame = score(model, ["How many?"], ["red"], images=[list(clip)])
    np.testing.assert_array_equal(score(model, ["How many?"], ["red"], videos=[[clip]]), by_frame)


def test_a_text_beyond_the_learned_positions_is_refused():
    parts = {"llm": {"family": "opt", "vocab": 25, "width": 16, "layers": 1, "heads": 2, "ffn": 32, "max_positions": 8}}
    definition = build_definition(parts)
    model = Model(definition, definition.initialise(jax.random.key(0)), Processor(make_tokenizer()), {"parts": parts})
    prompt = "how many red is there ? answer :"
    for ask in (lambda: score(model, [prompt], ["red"]), lambda: generate(model, [prompt])):
        with pytest.raises(UserError, match="a text of .* tokens.*: the language model has 8 positions; shorten the text"):
            ask()


def test_all_one_word_answers_sum_to_one(model):
    vocabulary = [model.processor.llm.convert_ids_to_tokens(token) for token in range(7, 25)]
    scores = score(model, [make_example(0)], [vocabulary], template="question_answer", end=False, batch_size=8)
    special = 1 - np.exp(scores).sum()
    assert scores.shape == (1, 18) and 0 <= special < 1
    best = vocabulary[int(scores[0].argmax())]
    unspecial = generate(model, [make_example(0)], template="question_answer", max_new_tokens=1)[0]
    assert unspecial in ("", best)


def test_missing_candidates_score_minus_infinity_and_means_are_per_token(model):
    examples = [make_example(0), make_example(1)]
    scores = score(model, examples, [["red", "blue"], ["a red"]], template="question_answer")
    assert np.isfinite(scores).tolist() == [[True, True], [True, False]]
    means = score(model, examples, [["red", "blue"], ["a red"]], template="question_answer", mean=True)
    np.testing.assert_allclose(scores[:, 0] / [2, 3], means[:, 0], rtol=1e-5)


def test_as_many_continuations_as_examples(model):
    with pytest.raises(UserError, match="2 in all, got 1"):
        score(model, [make_example(0), make_example(1)], ["red"])
