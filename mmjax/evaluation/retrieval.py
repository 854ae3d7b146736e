"""Retrieval: each picture looks for its captions among all captions, each caption for its picture among all pictures.

A BLIP-2 with the heads of stage 1 scores a pair by contrast, the largest product over the picture's queries, and scores the
best of each search once more by matching (arXiv 2301.12597, section 4.4, and its released evaluation).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from numpy import ndarray

from mmjax.data.exchanges import captions_of
from mmjax.decoding.embed import embed
from mmjax.decoding.inputs import batched, bucket
from mmjax.decoding.placement import fetch, place
from mmjax.evaluation.metrics.retrieval import CUTS, ranks, recalls
from mmjax.types import Source, UserError
from mmjax.types.model import Model

UNRANKED = -100.0  # the score of what the matching head has not seen: behind all that it has


def retrieve(
    model: Model, source: Source, count: int, *, batch_size: int = 64, rerank: int = 128
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Searches in both directions.

    Args:
      model: encoders of pictures and texts, or a BLIP-2 with the heads of stage 1.
      source: examples of one picture each, with its captions.
      count: how many of them, from the first on.
      batch_size: rows encoded at once.
      rerank: candidates of each search that a matching head scores again; 0 = none.

    Returns:
      The numbers ("recall_at_1", the mean of both directions, and recalls and ranks of each), and one line per search.

    Raises:
      UserError: an example without a picture, with several, or without captions; a model that embeds no pictures or texts.
    """
    names, pictures, captions, owner = [], [], [], []
    for index in range(count):
        example = source[index]
        if [medium.kind for medium in example.media] != ["image"]:
            kinds = ", ".join(medium.kind for medium in example.media) or "none"
            raise UserError(f"example {example.id!r}: retrieval expects one picture an example, its media are: {kinds}")
        own_captions = captions_of(example)
        names.append(example.id)
        pictures.append(example.media[0].data)
        captions += own_captions
        owner += [index] * len(own_captions)
    own = np.arange(count)[:, None] == np.array(owner)
    scores = similarities(model, pictures, captions, batch_size)
    text_scores, image_scores = scores, scores.T
    again = rerank if _matches(model) else 0
    if again:
        text_scores, image_scores = _reranked(model, pictures, captions, scores, again, batch_size)
    found = {"text": ranks(text_scores, own), "image": ranks(image_scores, own.T)}
    recall = {way: recalls(those) for way, those in found.items()}
    numbers = {
        "recall_at_1": (recall["text"][1] + recall["image"][1]) / 2,
        "also": {f"{way}_recall_at_{k}": recall[way][k] for way in found for k in CUTS},
        "ranks": {way: {"mean": float(np.mean(those)), "median": float(np.median(those))} for way, those in found.items()},
        "implementation": "share of pictures with one of their captions among the first k of all captions (text), of captions "
        "with their picture among the first k of all pictures (image), equal scores in the middle of their places; pairs "
        "score the cosine of their vectors, the largest over the queries of a picture that has several"
        + (f", the first {again} of a search again by matching logit + cosine" if again else ""),
        "share": True,
        "by_kind": {},
        "tables": {},
        "questions": count + len(captions),
        "captions": len(captions),
    }
    first_text, first_image = text_scores.argmax(1), image_scores.argmax(1)
    lines = [
        {"id": name, "rank": float(rank), "prediction": captions[first], "correct": bool(own[index, first])}
        for index, (name, rank, first) in enumerate(zip(names, found["text"], first_text, strict=True))
    ]
    lines += [
        {"id": names[index], "caption": caption, "rank": float(rank), "prediction": names[first], "correct": first == index}
        for index, caption, rank, first in zip(owner, captions, found["image"], first_image.tolist(), strict=True)
    ]
    return numbers, lines


def similarities(model: Model, pictures: list[Any], captions: list[str], batch_size: int) -> Float[ndarray, "n m"]:
    """Cosine of each picture with each caption, the largest over the vectors of a picture that has several."""
    vectors = embed(model, images=pictures, texts=captions, batch_size=batch_size)
    images, texts = vectors["image"], vectors["text"]
    images = images if images.ndim == 3 else images[:, None]
    return np.stack([(queries @ texts.T).max(0) for queries in images])


def _matches(model: Model) -> bool:
    """Whether the model has a head that looks at a picture and a text together."""
    connectors = getattr(model.definition.bind(model.parameters), "connectors", {})
    return "image" in connectors and getattr(connectors["image"], "heads", None) is not None


def _reranked(
    model: Model, pictures: list[Any], captions: list[str], scores: Float[ndarray, "n m"], first: int, batch_size: int
) -> tuple[Float[ndarray, "n m"], Float[ndarray, "m n"]]:
    """Both directions' scores: matching logit + contrast for the first candidates of a search, UNRANKED for the others."""
    texts, images = _first(scores, first), _first(scores.T, first).T
    matching = np.zeros_like(scores)
    pairs = np.argwhere(texts | images)
    matching[tuple(pairs.T)] = match(model, pictures, captions, pairs, batch_size)
    total = matching + scores
    return np.where(texts, total, UNRANKED), np.where(images, total, UNRANKED).T


def _first(scores: Float[ndarray, "n m"], count: int) -> Bool[ndarray, "n m"]:
    """Where the `count` best of each row stand."""
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept


def match(
    model: Model, pictures: list[Any], captions: list[str], pairs: Int[ndarray, "pairs 2"], batch_size: int
) -> Float[ndarray, "pairs"]:
    """Logit of "these belong together" for pairs of (picture, caption), the mean over the queries.

    A batch of pictures is encoded, matched with all that its pictures are paired with, and forgotten: what is held at once is
    the features of `batch_size` pictures, whatever the size of the data set, and every picture is encoded once.
    """

    def encode(parameters: Any, images: UInt8[Array, "b height width 3"]) -> Float[Array, "b p e"]:
        encoder = model.definition.bind(parameters).encoders["image"]
        return encoder(encoder.pixels(images))

    def logits(
        parameters: Any,
        features: Float[Array, "b p e"],
        picture: Int[Array, "r"],
        tokens: Int[Array, "r u"],
        mask: Bool[Array, "r u"],
    ) -> Float[Array, "r"]:
        qformer = model.definition.bind(parameters).connectors["image"]
        seen = qformer(features[picture][:, None], None, tokens[:, None], mask[:, None]).queries[:, 0]
        return jnp.mean(qformer.heads.matching(seen)[..., 1], axis=1)

    rows = bucket(len(pictures), batch_size)

    def compiled(function: Any) -> Any:
        return model.cache.setdefault(("evaluation.retrieval", function.__name__), jax.jit(function))

    def placed(*arrays: ndarray) -> tuple[Any, ...]:
        """The arrays with empty rows behind, so that every batch has one shape."""
        return place(tuple(np.pad(a, ((0, rows - len(a)), *((0, 0),) * (a.ndim - 1))) for a in arrays), model.parameters)

    tokens, mask = model.processor.texts(captions)
    scores = np.zeros(len(pairs), np.float32)
    for first in range(0, len(pictures), rows):
        chunk = pictures[first : first + rows]
        features = compiled(encode)(model.parameters, *placed(model.processor.images(chunk)))
        own = np.flatnonzero((pairs[:, 0] >= first) & (pairs[:, 0] < first + rows))
        for part in batched(own.tolist(), rows):
            picture, text = pairs[part].T
            asked = placed(picture - first, tokens[text], mask[text])
            scores[part] = fetch(compiled(logits)(model.parameters, features, *asked))[: len(part)]
    return scores
