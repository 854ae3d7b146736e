"""Where a model looked, as the report shows it."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.evaluation.pictures import attention
from mmjax.types import Medium, ask
from tests.decoding import world


def test_a_qformer_looks_somewhere_and_a_linear_map_nowhere():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    asked, model = [ask("how many?", Medium("image", picture)) for picture in pictures], world.make_model()
    one, other = attention(model, asked, "question_answer")
    assert one is not None and other is not None and one != other
    assert np.shape(one) == (2, 2) and np.max(one) == 1 and np.min(one) == 0
    linear = {"family": "linear", "encoder_width": 16, "output_width": 16, "merge": 4}
    linear = dataclasses.replace(model, config={"parts": {**world.PARTS, "connectors.image": linear}}, cache={})
    assert attention(linear, asked, "question_answer") == [None, None]
