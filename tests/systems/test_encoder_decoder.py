"""A BLIP-2 around an encoder–decoder: soft tokens stand in its source; training, decoding and scoring see the same model."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.data.batch import BatchShape, Item, assemble
from mmjax.data.templates import TEMPLATES
from mmjax.decoding import generate, score
from mmjax.systems.objectives import make_objective
from mmjax.systems.parts import build_definition, reads_source
from mmjax.training import run as run_module
from mmjax.training.metrics import read_lines
from mmjax.training.run import load_model, train
from mmjax.types import Model
from tests.decoding import world

T5 = {
    "family": "t5", "vocab": 25, "width": 16, "layers": 2, "decoder_layers": 3, "heads": 2, "head_dim": 6, "ffn": 32,
    "buckets": 8, "max_distance": 20,
}  # fmt: skip
PARTS = {**world.PARTS, "llm": T5}
QUESTION = "question_answer"


@pytest.fixture(scope="module")
def model():
    definition, generator = build_definition(PARTS), np.random.default_rng(0)
    parameters = {path: world.draw(path, definition.specs[path].shape, generator) for path in sorted(definition.specs)}
    parameters["llm.token_embedding.table"] *= 4
    processor = dataclasses.replace(world.make_model().processor, encoder_decoder=reads_source(PARTS))
    return Model(definition, parameters, processor, {"parts": PARTS})


def batch(model, rows, **sizes):
    """Examples by number, those of each list in one row, as a training batch."""

    def item(number):
        example = world.make_example(number)
        segments = tuple(map(model.processor.tokenise, TEMPLATES[QUESTION](example)))
        return Item(example.id, segments, {0: model.processor.image(example.media[0], example.id)})

    shape = BatchShape(
        rows=len(rows), media=2, queries=4, query_length=16, soft_tokens=3, image_size=12, pad_id=1, query_pad_id=1, **sizes
    )
    return assemble([[item(number) for number in numbers] for numbers in rows], shape)


@pytest.mark.heavy
@pytest.mark.usefixtures("optimised")
def test_packing_moves_neither_loss_nor_gradient(model):
    objective = make_objective("language_modelling", {})

    @jax.jit
    def losses(parameters, batch):
        def loss(parameters):
            sums, metrics = objective.sums(model.definition.bind(parameters), batch, None)
            return sums["text"] / objective.counts(batch)["text"], metrics

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    packed = batch(model, [[0, 1], [2]], length=20, source_length=70)
    (loss, _), gradient = losses(model.parameters, packed)
    (expected, _), expected_gradient = losses(model.parameters, batch(model, [[0], [1], [2]], length=8, source_length=37))
    assert packed.feature_index.shape == (2, 70) and packed.text.tokens.shape == (2, 20)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for path, value in expected_gradient.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(gradient[path], value, rtol=0, atol=2e-5 * scale, err_msg=path)
    reached = ("encoders.image.", "connectors.image.", "llm.encoder.", "llm.decoder.", "llm.head.")
    assert all(any(path.startswith(part) and np.abs(gradient[path]).max() > 0 for path in gradient) for part in reached)


def test_pictures_change_answers_and_batches_do_not(model):
    examples = [world.make_example(number) for number in range(6)]
    whole = generate(model, examples, template=QUESTION, max_new_tokens=4, eos_token_id=())
    assert len({answer.tokens for answer in whole}) > 1
    parts = generate(model, examples, template=QUESTION, max_new_tokens=4, eos_token_id=(), batch_size=4)
    assert [answer.tokens for answer in whole] == [answer.tokens for answer in parts]


@pytest.mark.heavy
def test_a_generated_answer_scores_the_sum_of_its_log_probabilities(model):
    examples = [world.make_example(number) for number in range(8)]
    answers = generate(model, examples, template=QUESTION, max_new_tokens=2, eos_token_id=())
    # Special tokens are not in the text, so only answers of ordinary words can be scored.
    pairs = [(example, answer) for example, answer in zip(examples, answers, strict=True) if min(answer.tokens) > 6]
    assert len(pairs) > 2
    examples, answers = zip(*pairs, strict=True)
    scores = score(model, examples, [str(answer) for answer in answers], template=QUESTION, end=False)
    np.testing.assert_allclose(scores, [answer.logprobs.sum() for answer in answers], rtol=1e-4, atol=1e-5)


@pytest.mark.heavy
def test_a_t5_learns_from_a_config(tmp_path, monkeypatch):
    """Questions packed as pairs; the loss falls, and the workdir answers."""
    import data_pipelines

    path = tmp_path / "shapes"
    data_pipelines.prepare("shapes", path, limit=40)
    monkeypatch.setattr(run_module, "write_report", lambda workdir: None)
    train(
        {
            "name": "t5",
            "parts": {"llm": {**T5, "vocab": 128, "layers": 1, "decoder_layers": 1}},
            "tokenizers": {"llm": str(path / "tokenizer")},
            "stages": {
                "qa": {
                    "steps": 30,
                    "objective": {"name": "language_modelling"},
                    "data": {
                        "mixture": {"shapes": {"path": str(path), "template": QUESTION}}, "rows": 8, "length": 32,
                        "source_length": 128, "media": 0, "pack": True, "window": 40,
                    },
                    "optimizer": {"learning_rate": 1e-2},
                    "trainable": [[".*", True]],
                    "log_every": 5,
                }
            },
            "logging": {"tensorboard": False, "hang_seconds": 0.0},
        },
        tmp_path / "run",
    )  # fmt: skip
    losses = [line["train/loss"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    (answer,) = generate(load_model(tmp_path / "run"), "Question: How many circles are there? Answer:", max_new_tokens=3)
    assert answer.tokens[-1] == 2 and len(answer.tokens) == 2, "one word and the end"
