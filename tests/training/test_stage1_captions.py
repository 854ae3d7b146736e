"""The workdir of a run of BLIP-2's stage 1 writes captions, and is evaluated by them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import data_pipelines
import mmjax
from experiments.blip2 import stage1
from mmjax.data.records import open_source


@pytest.mark.heavy
def test_a_run_of_stage_1_is_a_captioner(tmp_path):
    world, workdir = tmp_path / "shapes", tmp_path / "run"
    data_pipelines.prepare("shapes", world, limit=24)
    config, source = stage1.get_config("tiny"), {"path": str(world), "split": "test", "template": "caption"}
    config.tokenizers.llm = str(world / "tokenizer")
    stage = config.stages.stage1
    stage.steps, stage.evaluate, stage.data.rows = 2, [], 8
    for read in stage.data.mixture.values():
        read.path = str(world)
    config.evaluations = {"captions": {"source": source, "task": "caption", "limit": 3, "max_new_tokens": 6}}
    mmjax.train(config, workdir)

    results = mmjax.evaluate(config, workdir)["captions"]
    lines = [json.loads(line) for line in (workdir / "eval" / "captions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and np.isfinite(results["cider"])

    model, examples = mmjax.from_pretrained(workdir), open_source(world, "test")
    pictures = [[examples[number].media[0].data] for number in range(3)]
    answers = mmjax.generate(model, [""] * 3, images=pictures, max_new_tokens=6)
    assert [line["prediction"] for line in lines] == answers
    published = mmjax.generate(model, [""] * 3, images=pictures, task="caption")
    assert all(10 <= len(answer.tokens) + 1 <= 30 for answer in published), "[DEC] counts as one"
    best = mmjax.generate(model, [""] * 3, images=pictures, num_beams=3, min_new_tokens=9, max_new_tokens=29)
    assert published == best and all(published)
