"""One evaluation of a tiny model, shared by the tests that look at what it leaves behind."""

from __future__ import annotations

import types

import pytest

from mmjax.evaluation.evaluate import evaluate_model
from tests.decoding.world import make_example, make_model


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """A model, its examples, the results and the workdir of an evaluation of 12 pictures."""
    model, examples, workdir = make_model(), [make_example(number) for number in range(12)], tmp_path_factory.mktemp("run")
    options = dict(batch_size=8, max_new_tokens=3, control="swapped", data={"split": "test"}, progress=False)
    results = evaluate_model(model, "test", examples, workdir=workdir, **options)
    return types.SimpleNamespace(model=model, examples=examples, workdir=workdir, results=results, options=options)
