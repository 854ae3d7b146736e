"""Retrieval with a dual encoder and with a BLIP-2 of stage 1, against the rules written out pair by pair."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import mmjax
from mmjax.evaluation import retrieval
from mmjax.evaluation.evaluate import evaluate_model
from mmjax.evaluation.retrieval import retrieve
from mmjax.systems.parts import build_definition
from mmjax.types import Example, Medium, UserError
from mmjax.types.model import Model
from tests.decoding import world
from tests.decoding.test_embed import pictures, save_tokenizer
from tests.interop import encoder_models

CAPTIONS = (("a red", "is there a blue"), ("how many ?",), ("0 1 2", "yes", "no a"), ("what colour is there ?",))


def example(number):
    return Example(f"pairs/{number}", media=(Medium("image", world.png(number)),), answers=CAPTIONS[number])


EXAMPLES = [example(number) for number in range(4)]
PICTURES = [one.media[0].data for one in EXAMPLES]
TEXTS = [caption for captions in CAPTIONS for caption in captions]
OWNER = [number for number, captions in enumerate(CAPTIONS) for _ in captions]


@pytest.fixture(scope="module")
def blip2():
    """The Q-Former with its heads, and no language model."""
    parts = {name: dict(part) for name, part in world.PARTS.items() if name != "llm"}
    parts["connectors.image"] |= {"stage1": True, "projection": 6, "output_width": 0}
    definition, generator = build_definition(parts), np.random.default_rng(0)
    parameters = {path: world.draw(path, definition.specs[path].shape, generator) for path in sorted(definition.specs)}
    return Model(definition, parameters, world.make_model().processor, {"parts": parts})


def rank(scores, own):
    best = max(scores[i] for i in own)
    ties = sum(scores[i] == best for i in range(len(scores)) if i not in own)
    return 1 + sum(score > best for score in scores) + ties / 2


def expected_scores(model, first):
    """(contrast, texts of each picture, pictures of each text), one pair at a time."""
    vectors = mmjax.embed(model, images=[world.pixels(n) for n in range(4)], texts=TEXTS)
    contrast = np.einsum("iqd,td->iqt", vectors["image"], vectors["text"]).max(1)
    module = model.definition.bind(model.parameters)
    encoder, qformer = module.encoders["image"], module.connectors["image"]
    features = jax.jit(lambda images: encoder(encoder.pixels(images)))(np.stack([world.pixels(n) for n in range(4)]))
    tokens, mask = model.processor.texts(TEXTS)
    logit = jax.jit(
        lambda f, t, m: qformer.heads.matching(qformer(f[None, None], None, t[None, None], m[None, None]).queries[0, 0])[:, 1]
    )
    matching = np.array([[logit(features[i], tokens[t], mask[t]).mean() for t in range(len(TEXTS))] for i in range(4)])
    texts, images = np.full(contrast.shape, -100.0), np.full(contrast.shape, -100.0)
    for i in range(4):
        for t in sorted(range(len(TEXTS)), key=lambda t: -contrast[i, t])[:first]:
            texts[i, t] = matching[i, t] + contrast[i, t]
    for t in range(len(TEXTS)):
        for i in sorted(range(4), key=lambda i: -contrast[i, t])[:first]:
            images[i, t] = matching[i, t] + contrast[i, t]
    return contrast, texts, images.T


@pytest.mark.parametrize("first", [2, pytest.param(128, marks=pytest.mark.heavy)])
def test_blip2_reranks_the_first_candidates_by_matching(blip2, first):
    numbers, lines = retrieve(blip2, EXAMPLES, 4, batch_size=3, rerank=first)
    _, texts, images = expected_scores(blip2, first)
    text_ranks = [rank(texts[i], {t for t in range(len(TEXTS)) if OWNER[t] == i}) for i in range(4)]
    image_ranks = [rank(images[t], {OWNER[t]}) for t in range(len(TEXTS))]
    assert [line["rank"] for line in lines] == text_ranks + image_ranks
    recall = np.mean(np.array(text_ranks) <= 1), np.mean(np.array(image_ranks) <= 1)
    assert numbers["also"]["text_recall_at_1"] == recall[0] and numbers["also"]["image_recall_at_1"] == recall[1]
    assert numbers["recall_at_1"] == np.mean(recall) and numbers["also"]["text_recall_at_10"] == 1
    assert f"first {first}" in numbers["implementation"]


def test_features_of_one_batch_of_pictures_are_held_at_a_time(blip2, monkeypatch):
    """Whatever the pairs and the size of a batch: the logits of each pair by itself, each picture read once."""
    pairs = np.argwhere(np.random.default_rng(0).random((4, len(TEXTS))) < 0.7)
    pairs = pairs[np.random.default_rng(1).permutation(len(pairs))]
    alone = np.concatenate([retrieval.match(blip2, PICTURES, TEXTS, pair[None], 1) for pair in pairs])
    read, images = [], type(blip2.processor).images
    monkeypatch.setattr(type(blip2.processor), "images", lambda self, part: read.append(len(part)) or images(self, part))
    np.testing.assert_allclose(retrieval.match(blip2, PICTURES, TEXTS, pairs, 3), alone, atol=1e-5)
    assert read == [3, 1] and len(set(alone.round(4))) > 10


def test_without_reranking_contrast_decides(blip2):
    numbers, lines = retrieve(blip2, EXAMPLES, 4, rerank=0)
    contrast, _, _ = expected_scores(blip2, 1)
    assert [line["prediction"] for line in lines[:4]] == [TEXTS[i] for i in contrast.argmax(1)]
    assert [line["prediction"] for line in lines[4:]] == [f"pairs/{i}" for i in contrast.argmax(0)]
    assert "matching" not in numbers["implementation"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    encoder_models.make("clip", directory)
    save_tokenizer(directory)
    return mmjax.from_pretrained(directory)


def test_a_dual_encoder_searches_by_cosine(clip, tmp_path):
    captions = [("a red bird", "the tree"), ("blue",), ("a bird on the tree",)]
    images = pictures(3)
    examples = [
        Example(f"birds/{i}", media=(Medium("image", image),), answers=texts)
        for i, (image, texts) in enumerate(zip(images, captions, strict=True))
    ]
    results = evaluate_model(clip, "birds", examples, task="retrieval", workdir=tmp_path, batch_size=2, progress=False)
    texts, owner = [text for own in captions for text in own], [0, 0, 1, 2]
    vectors = mmjax.embed(clip, images=images, texts=texts)
    cosine = vectors["image"] @ vectors["text"].T
    found = [json.loads(line) for line in (tmp_path / "eval/birds.jsonl").read_text().splitlines()]
    assert [line["rank"] for line in found[:3]] == [rank(cosine[i], {t for t in range(4) if owner[t] == i}) for i in range(3)]
    assert [line["rank"] for line in found[3:]] == [rank(cosine[:, t], {owner[t]}) for t in range(4)]
    assert results["recall_at_1"] == (results["text_recall_at_1"] + results["image_recall_at_1"]) / 2
    saved = json.loads((tmp_path / "eval/birds.json").read_text())
    assert saved["task"] == "retrieval" and saved["captions"] == 4 and saved["examples"] == 3
    assert "matching" not in saved["implementation"]


def test_a_model_whose_scores_are_all_equal_finds_nothing(monkeypatch, clip):
    alike = {"image": np.ones((4, 3), np.float32), "text": np.ones((7, 3), np.float32)}
    monkeypatch.setattr(retrieval, "embed", lambda model, **_: alike)
    numbers, _ = retrieve(clip, EXAMPLES, 4)
    assert numbers["ranks"]["image"] == {"mean": 2.5, "median": 2.5} and numbers["recall_at_1"] == 0


def test_what_cannot_be_searched_is_told(blip2):
    with pytest.raises(UserError, match="'mute': retrieval expects one picture an example, its media are: none"):
        retrieve(blip2, [Example("mute", answers=("a",))], 1)
    with pytest.raises(UserError, match="'bare': expected meta"):
        retrieve(blip2, [Example("bare", media=EXAMPLES[0].media)], 1)
    with pytest.raises(UserError, match="embeds nothing"):
        retrieve(world.make_model(), EXAMPLES, 4)
