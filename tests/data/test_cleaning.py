"""Text as BLIP-2 was trained on it."""

from __future__ import annotations

from mmjax.data.cleaning import Cleaned, clean_caption, clean_example, clean_question
from mmjax.types import Example, Part, Turn


def test_captions_and_questions():
    text = '(A "Dog"; #1): runs!  fast*~.'
    assert clean_caption(text) == "a dog 1 runs fast"
    assert clean_caption("well.known") == "well known" and clean_question("well.known?") == "wellknown?"
    assert clean_caption("Word " * 60) == " ".join(["word"] * 50)


def test_an_answer_keeps_its_spelling_and_a_caption_does_not():
    question, answer = Turn("user", (Part(text="What IS it?!"),)), Turn("assistant", (Part(text="U.S. Flag"),))
    asked = clean_example(Example("e", turns=(question, answer), answers=("U.S. Flag",)))
    assert [turn.text for turn in asked.turns] == ["what is it?", "U.S. Flag"] and asked.answers == ("U.S. Flag",)
    shown = clean_example(Example("e", turns=(answer,), answers=("A. B.",), meta={"caption": "C!", "image_id": 3}))
    assert Cleaned([Example("e", meta={"caption": "C!"})])[0].meta == {"caption": "c"}
    assert shown.turns[0].text == "u s flag" and shown.answers == ("a b",) and shown.meta == {"caption": "c", "image_id": 3}
