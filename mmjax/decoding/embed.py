"""`embed`: pictures and texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mmjax.connectors.qformer import QFormer
from mmjax.decoding.inputs import batched, bucket
from mmjax.decoding.placement import fetch, place
from mmjax.systems import blip2
from mmjax.systems.dual_encoder import DualEncoder
from mmjax.types import UserError
from mmjax.types.model import Model

Embedder = Callable[..., Any]
# Of a BLIP-2: what its queries or its text read, and of these what the heads of stage 1 project.
FEATURES: dict[str, Embedder] = {"image": blip2.image_features, "text": blip2.text_features, "pair": blip2.pair_features}
HEADS: dict[str, Embedder] = {"image": blip2.embed_images, "text": blip2.embed_texts}


def embed(
    model: Model,
    *,
    images: Sequence[Any] | None = None,
    texts: Sequence[str] | None = None,
    audios: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    depth: Sequence[Any] | None = None,
    thermal: Sequence[Any] | None = None,
    imu: Sequence[Any] | None = None,
    pairs: Sequence[Any] | None = None,
    projected: bool = True,
    batch_size: int = 64,
) -> dict[str, Float[np.ndarray, "..."]]:
    """Vectors of media and texts.

    Args:
      model: encoders, or a BLIP-2.
      images: paths, bytes, uint8 arrays [height, width, 3] or PIL images.
      texts: plain texts.
      audios, videos, depth, thermal, imu: media of these kinds.
      pairs: (image, text) that BLIP-2's queries read together.
      projected: of a BLIP-2: the vectors that the heads of stage 1 compare, of length one; False = the features before them,
        of a text that of its [CLS], which a model without these heads has too.
      batch_size: rows encoded at once.

    Returns:
      For each kind that was given, under "image", "text", …, float32 [n, d]: where the model compares kinds (CLIP, SigLIP)
      vectors of length one in their joint space, and of one encoder its pooled features. BLIP-2 has a vector for each of its
      queries of an image, [n, q, d]; its score of a pair is the largest product. Under "pair", [n, q, d], what its queries
      read of image and text together: LAVIS's multimodal features, which no head projects.

    Raises:
      UserError: the model does not embed that kind, or an image or text cannot be used.
    """
    given = {
        "image": images, "text": texts, "audio": audios, "video": videos, "depth": depth, "thermal": thermal, "imu": imu,
        "pair": pairs,
    }  # fmt: skip
    asked = {kind: items for kind, items in given.items() if items is not None}
    embedders = _embedders(model, projected)
    for kind, items in asked.items():
        if kind not in embedders:
            raise UserError(f"the model embeds {' and '.join(embedders) or 'nothing'}, not {kind}")
        if isinstance(items, str | bytes):
            raise UserError(f"{kind}: expected a list, got {type(items).__name__}")
    if wrong := [item for item in pairs or () if not isinstance(item, tuple) or len(item) != 2]:
        raise UserError(f"pairs: expected tuples of an image and a text, got {type(wrong[0]).__name__}")
    if model.processor is None:
        raise UserError("the model came without a tokenizer; put tokenizer.json into its directory")
    return {kind: _rows(model, kind, embedders[kind], list(items), batch_size) for kind, items in asked.items()}


def _embedders(model: Model, projected: bool) -> dict[str, Embedder]:
    """What a model can embed: kind -> function of the bound system and the arrays that its processor makes."""
    system = model.definition.bind(model.definition.abstract())
    if isinstance(system, DualEncoder):
        if not projected:
            raise UserError("projected=False gives the features of BLIP-2's queries; this model has none")
        table: dict[str, Embedder] = {"image": DualEncoder.embed_images, "text": DualEncoder.embed_texts}
        return {kind: table[kind] for kind in system.encoders if kind in table}
    qformer = system.connectors.get("image")
    if not isinstance(qformer, QFormer) or (projected and qformer.heads is None):
        return {}
    reads_text = qformer.config.vocab and "connectors.image.word_embedding.table" not in model.config.get("absent", ())
    needs = {"image": "image" in system.encoders, "text": reads_text, "pair": "image" in system.encoders and reads_text}
    able = FEATURES | (HEADS if projected else {})
    return {kind: embedder for kind, embedder in able.items() if needs[kind]}


def _rows(model: Model, kind: str, embedder: Embedder, items: list[Any], batch_size: int) -> Float[np.ndarray, "..."]:
    def run(parameters: Any, arrays: tuple[Any, ...]) -> Any:
        return embedder(model.definition.bind(parameters), *arrays)

    def prepare(part: list[Any]) -> tuple[np.ndarray, ...]:
        if kind == "pair":
            pictures, texts = zip(*part, strict=True) if part else ((), ())
            return model.processor.images(pictures), *model.processor.texts(texts)
        return (model.processor.images(part),) if kind == "image" else model.processor.texts(part)

    compiled = model.cache.setdefault(("decoding.embed", kind, embedder.__name__), jax.jit(run))
    rows = bucket(max(len(items), 1), batch_size)
    pieces = []
    for part in batched(items, batch_size):
        arrays = tuple(_filled(array, rows) for array in prepare(part))
        pieces.append(fetch(compiled(model.parameters, place(arrays, model.parameters)))[: len(part)])
    if pieces:
        return np.concatenate(pieces)
    shape = jax.eval_shape(run, model.parameters, tuple(_filled(array, 1) for array in prepare([]))).shape
    return np.zeros((0, *shape[1:]), np.float32)


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with empty rows behind, so that every batch has one shape."""
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
