"""Captions, ranked choices and the controls, through the same evaluation as answers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mmjax.data.encoder_processor import EncoderProcessor
from mmjax.decoding import generate, score
from mmjax.evaluation.config import EvaluationOptions
from mmjax.evaluation.evaluate import evaluate_model
from mmjax.evaluation.metrics import METRICS
from mmjax.evaluation.questions import questions, questions_of
from mmjax.types import Example, Medium, Part, Turn, UserError
from tests.decoding.world import make_example, make_model, make_tokenizer, png

CAPTIONS = (("a red", "a blue red"), ("is there a blue",), ("how many is 2 ?", "a 1", "0 1"))


@pytest.fixture(scope="module")
def model():
    return make_model()


def captioned(number):
    return Example(
        f"captions/test/{number}",
        media=(Medium("image", png(number)),),
        answers=CAPTIONS[number % 3],
        meta={"kind": "odd" if number % 2 else "even", "image_id": number},
    )


def evaluated(model, workdir, examples, **options):
    results = evaluate_model(model, "test", examples, workdir=workdir, batch_size=4, progress=False, **options)
    lines = [json.loads(line) for line in (workdir / "eval/test.jsonl").read_text().splitlines()]
    return results, json.loads((workdir / "eval/test.json").read_text()), lines


def test_captions_are_decoded_from_the_prompt_and_scored_as_a_set(model, tmp_path):
    examples = [captioned(number) for number in range(6)]
    results, numbers, lines = evaluated(
        model, tmp_path, examples, task="caption", template="instruction", prompt="a", num_beams=2, min_new_tokens=2,
        max_new_tokens=3, length_penalty=-1.0, repetition_penalty=1.5,
    )  # fmt: skip
    said = generate(
        model, ["a"] * 6, images=[[png(number)] for number in range(6)], num_beams=2, min_new_tokens=2,
        max_new_tokens=3, length_penalty=-1.0, repetition_penalty=1.5, batch_size=4,
    )  # fmt: skip
    assert [line["prediction"] for line in lines] == said
    expected = METRICS["cider"].score(said, [example.answers for example in examples], [{}] * 6)
    assert results["cider"] == numbers["cider"] == expected.value
    assert numbers["also"] == expected.also and results["bleu_4"] == expected.also["bleu_4"]
    assert set(numbers["by_kind"]) == {"even", "odd"} and numbers["by_kind"]["odd"]["questions"] == 3
    assert lines[4]["correct"] is None and lines[4]["image_id"] == 4 and lines[4]["answers"] == list(CAPTIONS[1])
    assert numbers["prompt"] == "a" and numbers["share"] is False
    assert numbers["decoding"]["length_penalty"] == -1 and numbers["decoding"]["repetition_penalty"] == 1.5


def test_captions_without_a_prompt_take_the_templates(model, tmp_path):
    _, numbers, lines = evaluated(model, tmp_path, [captioned(0)], task="caption", template="caption", max_new_tokens=2)
    assert numbers["prompt"] == "" and lines[0]["question"] == "" and numbers["questions"] == 1


def test_an_answer_may_end_at_another_token(model, tmp_path):
    end = 12  # an ordinary word
    _, numbers, lines = evaluated(model, tmp_path, [make_example(0)], max_new_tokens=6, eos_token_id=(end, 13))
    said = generate(model, list(questions([make_example(0)], 1, EvaluationOptions())), template="question_answer",
                    max_new_tokens=6, eos_token_id=(end, 13), batch_size=4)  # fmt: skip
    assert [line["prediction"] for line in lines] == said and numbers["decoding"]["eos_token_id"] == [end, 13]


def test_captions_of_a_conversation_are_its_caption():
    example = make_example(1)
    (asked,) = questions_of(dataclasses.replace(example, meta={"caption": "a red"}), EvaluationOptions(task="caption"))
    assert asked.answers == ("a red",) and asked.turns == ()


def test_choices_are_ranked_by_their_likelihood(model, tmp_path):
    choices = [["red", "blue"], ["0 1", "2", "yes"], ["no", "red"]]
    examples = [
        dataclasses.replace(
            make_example(number),
            turns=(Turn("user", (Part(medium=0), Part("What colour?"))),),
            answers=(choices[number][0],),
            meta={"choices": choices[number]},
        )
        for number in range(3)
    ]
    results, numbers, lines = evaluated(model, tmp_path, examples, task="rank")
    table = score(model, examples, choices, template="question_answer")
    best = [given[int(np.argmax(row[: len(given)]))] for given, row in zip(choices, table, strict=True)]
    assert [line["prediction"] for line in lines] == best
    assert results["exact_match"] == np.mean([text == given[0] for text, given in zip(best, choices, strict=True)])
    assert [text for text, _ in lines[1]["choices"]] == choices[1]
    np.testing.assert_allclose([value for _, value in lines[1]["choices"]], table[1], rtol=1e-5)
    _, _, without_end = evaluated(model, tmp_path, examples, task="rank", rank_end=False)
    expected = score(model, examples, choices, template="question_answer", end=False)
    np.testing.assert_allclose([line["logprob"] for line in without_end], expected.max(1), rtol=1e-5)


def test_one_list_of_choices_serves_all_questions(model, tmp_path):
    _, numbers, lines = evaluated(model, tmp_path, [make_example(0)], task="rank", choices=("red", "blue"))
    assert len(lines) == 2 and {line["prediction"] for line in lines} <= {"red", "blue"}
    with pytest.raises(UserError, match=r"world/test/0#0' has no meta\['choices'\]"):
        evaluate_model(model, "test", [make_example(0)], task="rank", progress=False)


def test_blank_pictures_have_the_mean_colour(model, tmp_path):
    examples = [make_example(number) for number in range(3)]
    _, numbers, lines = evaluated(model, tmp_path, examples, control="blank", max_new_tokens=3)
    mean = model.definition.bind(model.parameters).encoders["image"].config.mean
    blank = np.broadcast_to(np.round(255 * np.array(mean)).astype(np.uint8), (12, 12, 3)).copy()
    asked = [
        dataclasses.replace(question, media=(Medium("image", blank),))
        for question in questions(examples, 3, EvaluationOptions())
    ]
    said = generate(model, asked, template="question_answer", max_new_tokens=3, batch_size=4)
    assert [line["prediction_blank"] for line in lines] == said
    assert numbers["control"]["name"] == "blank"
    with pytest.raises(UserError, match="words#0.*control='blank'"):
        list(
            evaluate_model(
                model, "test", [Example("words#0", turns=make_example(0).turns[2:])], control="blank", progress=False
            )
        )


def test_questions_have_answers_and_kinds_of_their_own_and_tables_follow_meta(model, tmp_path):
    own = [
        {"answers": ["red"] * 10, "kind": "other", "question_type": "what colour", "question_id": 7},
        {"answers": ["2"] * 9 + ["3"], "kind": "number", "question_type": "how many", "question_id": 8},
    ]
    examples = [dataclasses.replace(make_example(0), meta={"questions": own, "image_id": 3})]
    _, numbers, lines = evaluated(model, tmp_path, examples, metric="vqa_accuracy", tables=("question_type",))
    assert [line["question_id"] for line in lines] == [7, 8] and lines[1]["answers"] == ["2"] * 9 + ["3"]
    assert set(numbers["by_kind"]) == {"number", "other"}
    assert set(numbers["tables"]["question_type"]) == {"what colour", "how many"} and lines[0]["image_id"] == 3


def test_a_chat_template_renders_the_prompt(model, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ 'answer : ' + message['content'] }}{% endfor %}"
    chatty = dataclasses.replace(model, processor=dataclasses.replace(model.processor, llm=tokenizer))
    asked = [Example("a", turns=(Turn("user", (Part("how many is 2 ?"),)),), answers=("2",))]
    _, numbers, lines = evaluated(chatty, tmp_path, asked, template="chat", max_new_tokens=2)
    assert numbers["prompt"] == "answer : how many is 2 ?" and len(lines) == 1


def test_encoders_are_told_what_they_can_do(model):
    for processor, message in ((None, "came without a tokenizer"), (EncoderProcessor(), "evaluated by task='retrieval'")):
        with pytest.raises(UserError, match=message):
            evaluate_model(dataclasses.replace(model, processor=processor), "test", [make_example(0)], progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(task="sing"), "task must be one of answer, rank, caption, retrieval, got 'sing'"),
        (dict(task="retrieval", metric="cider"), "measured by recall_at_1, not by 'cider'"),
        (dict(task="retrieval", control="blank"), "control='blank' is for answers"),
        (dict(choices=("a",)), "task='rank', got task='answer'"),
        (dict(num_beans=2), "num_beans: no such key; did you mean 'num_beams'"),
        (dict(min_new_tokens=-1), "min_new_tokens must be 0 or more, got -1"),
    ],
)
def test_mistakes_are_named(model, options, message):
    with pytest.raises(UserError, match=message):
        evaluate_model(model, "test", [make_example(0)], progress=False, **options)
