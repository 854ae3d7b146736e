"""Answer priors against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.data import priors
from mmjax.data.priors import count_answer_prior
from mmjax.types import Example, Part, Turn, UserError


def scene(number: int, *asked: tuple[str, str, str]) -> Example:
    turns = []
    for _, question, answer in asked:
        turns += [Turn("user", (Part(text=question),)), Turn("assistant", (Part(text=answer),))]
    return Example(f"s/{number}", turns=tuple(turns), meta={"kinds": [kind for kind, _, _ in asked]})


SCENES = [
    scene(0, ("count", "how many ?", "1"), ("colour", "what colour ?", "red")),
    scene(1, ("count", "how many ?", "1"), ("colour", "what colour ?", "blue")),
    scene(2, ("count", "how many ?", "2"), ("count", "how many red ?", "3")),
]
FLOOR = 0.01


def test_table(processor):
    prior = count_answer_prior(SCENES, "question_answer", processor, floor=FLOOR)
    word = processor.llm.convert_tokens_to_ids
    many, colour, red = (
        prior.table[prior.prompts[f"Question: {q} Answer:"]] for q in ("how many ?", "what colour ?", "how many red ?")
    )
    expected = {"1": 2 / 3, "2": 1 / 3, "3": FLOOR}
    np.testing.assert_allclose(many[[word(w) for w in expected]], np.log(list(expected.values())), rtol=1e-6)
    assert np.count_nonzero(many) == 3, "answers of other kinds are left alone"
    assert np.count_nonzero(colour) == 2 and colour[word("red")] == pytest.approx(np.log(0.5))
    assert red[word("3")] == 0 and red[word("1")] == pytest.approx(np.log(FLOOR))
    assert not prior.table[0].any() and prior.table.dtype == np.float32
    assert prior.table.shape == (4, len(processor.llm))


def test_without_kinds_all_answers_count(processor):
    plain = [Example(scene.id, turns=scene.turns) for scene in SCENES]
    prior = count_answer_prior(plain, "question_answer", processor, floor=FLOOR)
    assert np.count_nonzero(prior.table[prior.prompts["Question: how many ? Answer:"]]) == 5


def test_sampling_is_even(processor):
    prior = count_answer_prior(SCENES, "question_answer", processor, floor=FLOOR, sample=1)
    assert len(prior.prompts) == 2


def test_a_table_too_large_is_refused(processor, monkeypatch):
    monkeypatch.setattr(priors, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="answer_prior=0"):
        count_answer_prior(SCENES, "question_answer", processor, floor=FLOOR)
