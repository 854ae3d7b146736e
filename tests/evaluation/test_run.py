"""`evaluate`: every evaluation of a config, on the model of a workdir."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

import mmjax
from mmjax.evaluation import run
from mmjax.types import UserError


@pytest.fixture
def loaded(evaluated, monkeypatch):
    """Loading is other modules' work: the model and the examples are at hand."""
    monkeypatch.setattr(mmjax, "from_pretrained", lambda workdir: evaluated.model)
    monkeypatch.setattr(run, "open_source", lambda path, split, limit: evaluated.examples[:3])


def test_all_evaluations_of_a_config_run_and_report(loaded, tmp_path):
    task = {"source": {"path": "data/world", "split": "test"}, "batch_size": 8, "max_new_tokens": 3}
    config = ConfigDict({"evaluations": {"first": task, "second": {**task, "control": "swapped"}}})
    results = run.evaluate(config, tmp_path)
    assert list(results) == ["first", "second"]
    assert "swapped/exact_match" in results["second"] and "swapped/exact_match" not in results["first"]
    assert {path.name for path in (tmp_path / "eval").glob("*.json")} >= {"first.json", "second.json"}
    assert "second" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("config", "message"),
    [({}, "no evaluation"), ({"evaluations": {"a": {"source": {"path": "p"}, "metric": "bleu"}}}, "bleu")],
)
def test_mistakes_are_named(loaded, tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        run.evaluate(config, tmp_path)
