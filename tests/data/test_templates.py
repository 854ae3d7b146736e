"""Templates: the text, the weights, and that a prompt is the head of its training segment."""

from __future__ import annotations

import dataclasses

import pytest

from mmjax.data.conversation import STYLES
from mmjax.data.exchanges import single_questions
from mmjax.data.segments import MediumSlot, Piece, Segment, Special, draw
from mmjax.data.templates import TEMPLATES, template
from mmjax.types import Example, Medium, Part, Turn, UserError


def text(segment: Segment) -> str:
    return "".join(part.text for part in segment.parts if isinstance(part, Piece))


def test_question_answer_learns_the_answer_only(example):
    first, second = TEMPLATES["question_answer"](example(1))
    question = "Question: How many blue square ? Answer:"
    assert first.parts == (MediumSlot(0), Special("bos"), Piece(question), Piece(" 1", 1.0), Special("eos", 1.0))
    assert first.query == question and first.parts[first.answer] == Piece(" 1", 1.0)
    assert second.parts[0] == MediumSlot(0), "later questions are about the picture of the first turn"


def test_caption_learns_bos_from_the_last_soft_token(example):
    (segment,) = TEMPLATES["caption"](example(0))
    assert segment.parts == (MediumSlot(0), Special("bos", 1.0), Piece("A red square on the left .", 1.0), Special("eos", 1.0))
    assert segment.query is None


def test_captions_are_drawn_from_the_accepted_ones():
    one = Example("e", answers=("a dog", "two dogs", "a cat"))
    drawn = {TEMPLATES["caption"](one, seed)[0].parts[-2].text for seed in range(40)}
    assert drawn == {"a dog", "two dogs", "a cat"}
    assert {TEMPLATES["caption_pair"](one, seed)[0].query for seed in range(40)} == drawn


def test_a_caption_is_split_in_its_first_half():
    one = Example("e", meta={"caption": "a b c d e"})
    splits = set()
    for seed in range(40):
        (segment,) = TEMPLATES["caption_suffix"](one, seed)
        begun, rest = segment.parts[-3:-1]
        assert begun.weight == 0 and rest.weight == 1 and begun.text + rest.text == "a b c d e"
        splits.add(begun.text)
    assert splits == {"a", "a b"}
    (segment,) = TEMPLATES["caption_suffix"](Example("e", meta={"caption": "dog"}), 0)
    assert [part.text for part in segment.parts if isinstance(part, Piece)] == [" dog"]


def test_instructions_of_captions_and_of_questions(example):
    texts = {TEMPLATES["caption_mixed"](example(0), seed)[0].query for seed in range(200)}
    assert len(texts) == 13 and "A photo of" in texts
    (photo,) = TEMPLATES["caption_photo"](example(0))
    assert text(photo) == "a photo of A red square on the left ." and photo.query is None
    first = TEMPLATES["question_generation"](example(1), 3)[0]
    assert first.parts[first.answer] == Piece(" How many blue square ?", 1.0) and "1" in first.query


def test_caption_pair_has_no_text(example):
    (segment,) = TEMPLATES["caption_pair"](example(0))
    assert segment.parts == (MediumSlot(0),) and segment.query == "A red square on the left ."


def test_document_holds_the_caption_and_every_question(example):
    (segment,) = TEMPLATES["document"](example(1))
    assert text(segment).startswith("A red square on the left . a circle. Question: How many blue square ? Answer: 1 Question:")
    assert segment.parts[0] == Special("bos") and segment.parts[-1] == Special("eos", 1.0)
    questions = len(TEMPLATES["question_answer"](example(1)))
    assert [part.weight for part in segment.parts] == [0.0, 0.3, *[0.3, 1.0, 1.0] * questions]
    assert not any(isinstance(part, MediumSlot) for part in segment.parts)


WHOLE = {"llava_plain", "minigpt4_plain", *STYLES}  # one text, whose ids are compared in test_conversation.py


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - WHOLE - {"document"}))  # its prompt is a question without the caption
def test_prompt_is_the_head_of_the_training_segment(name, example):
    one = example(4)
    one = dataclasses.replace(one, meta={**one.meta, "choices": ["0", "1", "2", "3"]})
    segment, prompt = TEMPLATES[name](one, 7)[-1], TEMPLATES[name].prompt(one, 7)
    heads = zip(prompt.parts, segment.parts, strict=False)
    for a, b in heads:  # weights differ: a prompt learns nothing
        assert a == b or dataclasses.replace(a, weight=0.0) == dataclasses.replace(b, weight=0.0)
    assert [type(part) for part in prompt.parts] == [type(part) for part in segment.parts[: len(prompt.parts)]]
    assert prompt.query == segment.query and prompt.answer == -1


def test_the_lectures_ten_prompts():
    one = Example("e", turns=(Turn("user", (Part(text="Is it {red}?"),)), Turn("assistant", (Part(text="no"),))))
    texts = [text(TEMPLATES[f"vqa_{number}"].prompt(one, 0)) for number in range(1, 11)]
    assert len(set(texts)) == 10 and all("Is it {red}?" in each for each in texts)
    assert texts[0] == "Is it {red}?" and texts[8] == 'What is the answer to the following question? "Is it {red}?"'


def test_mixed_prompts_depend_on_id_and_seed_only(example):
    render = TEMPLATES["vqa_mixed"]
    assert render(example(1), 3) == render(example(1), 3)
    assert len({text(render(example(i), seed)[0]).replace("blue", "red") for i in range(9) for seed in range(9)}) > 10


def test_draw_is_the_same_everywhere():
    assert draw("a", 1) == draw("a", 1) != draw("a", 2)
    assert draw(0, "shuffle", "world") == 8482170690242079144


def test_single_questions(example):
    first, second = single_questions(example(2))
    assert (first.id, second.id) == ("world/train/2#0", "world/train/2#1")
    assert second.answers == ("3",) and second.meta["kind"] == "count"
    assert TEMPLATES["question_answer"].prompt(second, 0) == TEMPLATES["question_answer"].prompt(example(2), 0)


def test_a_question_has_the_media_shown_until_then():
    media = tuple(Medium("image", bytes([n])) for n in range(2))
    shown = [(), (1,), (0,)]
    turns = []
    for number, own in enumerate(shown):
        turns.append(Turn("user", (*(Part(medium=index) for index in own), Part(text=f"{number}?"))))
        turns.append(Turn("assistant", (Part(text="yes"),)))
    singles = single_questions(Example("e", media=media, turns=tuple(turns)))
    assert [[medium.data for medium in one.media] for one in singles] == [[], [b"\x01"], [b"\x00", b"\x01"]]
    assert [one.turns[0].media for one in singles] == [(), (0,), (1, 0)]


def test_most_frequent_answer_is_learnt():
    one = Example("e", turns=(Turn("user", (Part(text="How many?"),)),), answers=("2", "3", "3"))
    assert TEMPLATES["question_answer"](one)[0].parts[-2] == Piece(" 3", 1.0)
    assert single_questions(one)[0].answers == ("2", "3", "3")


def test_mistakes_name_the_example():
    with pytest.raises(UserError, match="vqa_mixed"):
        template("nothing")
    silent = Example("data/train/3", turns=(Turn("user", (Part(text="How many?"),)),))
    with pytest.raises(UserError, match="data/train/3"):
        TEMPLATES["question_answer"](silent)
    with pytest.raises(UserError, match="data/train/3"):
        TEMPLATES["caption"](silent)


def test_choices_must_hold_the_answer_and_captions_exist():
    asked = Example("e", turns=(Turn("user", (Part("Which?"),)),), answers=("tea",), meta={"choices": ["milk", "stone"]})
    assert template("choices").prompt(asked, 0).query == "Question: Which? Options: (a) milk (b) stone. Answer:"
    with pytest.raises(UserError, match="'tea' is none of meta.*: milk, stone"):
        template("choice_letters")(asked)
    with pytest.raises(UserError, match="'bare': expected meta"):
        template("caption")(Example("bare"))


def test_what_is_a_questions_own_goes_before_what_is_the_examples(example):
    own = [{"answers": ["red", "dark red"], "kind": "colour"}, {"kind": "number"}]
    asked = dataclasses.replace(example(2), answers=("1",), meta={"questions": own, "image_id": 5})
    first, second = single_questions(asked)
    assert first.answers == ("red", "dark red") and first.meta == {"image_id": 5, "kind": "colour"}
    assert second.answers == ("1",) and second.meta == {"image_id": 5, "kind": "number"}
