"""An evaluation's numbers follow from its predictions, and its files say how they came about."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from mmjax.decoding import generate
from mmjax.evaluation.config import EvaluationOptions
from mmjax.evaluation.evaluate import evaluate_model
from mmjax.evaluation.questions import questions, swapped_media
from mmjax.types import Example, Medium, Part, Turn, UserError
from tests.decoding.world import make_example, pixels, png


def lines_of(evaluated):
    return [json.loads(line) for line in (evaluated.workdir / "eval/test.jsonl").read_text().splitlines()]


def test_every_question_is_answered_as_generate_answers_it(evaluated):
    lines = lines_of(evaluated)
    asked = list(questions(evaluated.examples, 12, EvaluationOptions()))
    assert [line["id"] for line in lines] == [question.id for question in asked] and len(lines) == 24
    answers = generate(evaluated.model, asked, template="question_answer", max_new_tokens=3, batch_size=8)
    assert [line["prediction"] for line in lines] == answers
    assert lines[1]["question"] == "How many?" and lines[1]["kind"] == "count_all" and lines[1]["answers"] == ["0"]


def test_numbers_are_means_of_the_lines_and_say_how(evaluated):
    numbers = json.loads((evaluated.workdir / "eval/test.json").read_text())
    lines = lines_of(evaluated)
    assert numbers["exact_match"] == np.mean([line["score"] for line in lines]) == evaluated.results["exact_match"]
    kind = [line["score"] for line in lines if line["kind"] == "colour"]
    assert numbers["by_kind"]["colour"] == {"mean": np.mean(kind), "questions": 12}
    blind = np.mean([line["prediction_swapped"] in line["answers"] for line in lines])
    assert numbers["control"]["exact_match"] == pytest.approx(blind)
    assert numbers["prompt"] == "Question: What colour is there? Answer:"
    assert numbers["data"] == {"split": "test"} and numbers["questions"] == 24
    assert numbers["decoding"]["max_new_tokens"] == 3 and "equal" in numbers["implementation"]
    assert set(evaluated.results) == {"exact_match", "exact_match/colour", "exact_match/count_all", "swapped/exact_match"}


def test_swapped_questions_have_the_next_other_picture():
    examples = [make_example(number) for number in (0, 1, 1, 2)]
    media = [question.media[0].data for question in questions(examples, 4, EvaluationOptions(), swapped_media)]
    assert media == [png(number) for number in (1, 1, 2, 2, 2, 2, 0, 0)]
    with pytest.raises(UserError, match="swap"):
        list(questions(examples[1:3], 2, EvaluationOptions(), swapped_media))


def test_ten_pictures_are_kept_with_attention_in_its_place(evaluated):
    pictures = json.loads((evaluated.workdir / "eval/test.pictures.json").read_text())
    assert len({picture["id"].partition("#")[0] for picture in pictures}) == 10
    assert {picture["kind"] for picture in pictures} == {"colour", "count_all"}
    for picture in pictures:
        head, _, data = picture["image"].partition(",")
        number = int(picture["id"].partition("#")[0].rpartition("/")[2])
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels(number))
        grid = np.array(picture["map"])
        assert grid.shape == (2, 2) and grid.min() == 0 and grid.max() == 1


def test_a_second_evaluation_compiles_nothing(evaluated):
    searcher = evaluated.model.cache["decoding.search"]
    before = searcher.compilations
    again = evaluate_model(evaluated.model, "again", evaluated.examples, limit=5, **evaluated.options)
    assert searcher.compilations == before == 2
    assert 0 <= again["exact_match"] <= 1 and not (evaluated.workdir / "eval/again.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(metric="bleu"), "bleu"),
        (dict(control="grey"), "grey"),
        (dict(template="chat"), "chat"),
        (dict(examples=[]), "no examples"),
    ],
)
def test_mistakes_are_named(evaluated, change, message):
    options = {"examples": evaluated.examples, **evaluated.options, **change}
    with pytest.raises(UserError, match=message):
        evaluate_model(evaluated.model, "test", options.pop("examples"), **options)


def film(number):
    clip = np.stack([pixels(10 * number + frame) for frame in range(6)])
    turns = (Turn("user", (Part(medium=0), Part(text="How many?"))), Turn("assistant", (Part(text="1"),)))
    return Example(f"films/{number}", media=(Medium("video", clip),), turns=turns)


def test_videos_are_asked_about_like_pictures(evaluated, tmp_path):
    films = [film(number) for number in range(5)]
    evaluate_model(evaluated.model, "films", films, workdir=tmp_path, **evaluated.options)
    lines = [json.loads(line) for line in (tmp_path / "eval/films.jsonl").read_text().splitlines()]
    answers = generate(evaluated.model, films, template="question_answer", max_new_tokens=3, batch_size=8)
    assert [line["prediction"] for line in lines] == answers and len({answer.tokens for answer in answers}) > 1
    assert all("prediction_swapped" in line for line in lines)


@pytest.mark.parametrize("kind", ["video", "image", "audio"])
def test_a_medium_that_cannot_be_used_is_one_line(evaluated, kind):
    example = Example("bad/7", media=(Medium(kind, png(0)[:40]),), turns=film(0).turns)
    with pytest.raises(UserError, match="example 'bad/7#0', medium 0: ") as error:
        evaluate_model(evaluated.model, "bad", [example], progress=False)
    assert "\n" not in str(error.value)


def test_a_question_without_answer_is_refused(evaluated):
    example = Example("mute", turns=(Turn("user", (Part(text="How many?"),)),))
    with pytest.raises(UserError, match="mute#0"):
        evaluate_model(evaluated.model, "test", [example], progress=False)
