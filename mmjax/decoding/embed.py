"""`embed`: pictures and texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mmjax.decoding.inputs import batched, bucket
from mmjax.decoding.placement import fetch, place
from mmjax.systems import blip2
from mmjax.systems.dual_encoder import DualEncoder
from mmjax.types import UserError
from mmjax.types.model import Model

Embedder = Callable[..., Any]


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
    batch_size: int = 64,
) -> dict[str, Float[np.ndarray, "..."]]:
    """Vectors of media and texts.

    Args:
      model: encoders, or a BLIP-2 with the heads of stage 1.
      images: paths, bytes, uint8 arrays [height, width, 3] or PIL images.
      texts: plain texts.
      audios, videos, depth, thermal, imu: media of these kinds.
      batch_size: rows encoded at once.

    Returns:
      For each kind that was given, under "image", "text", …, float32 [n, d]: where the model compares kinds (CLIP, SigLIP)
      vectors of length one in their joint space, and of one encoder its pooled features. BLIP-2 has a vector for each of its
      queries of an image, [n, q, d]; its score of a pair is the largest product.

    Raises:
      UserError: the model has no encoder of that kind, or an image or text cannot be used.
    """
    given = {
        "image": images, "text": texts, "audio": audios, "video": videos, "depth": depth, "thermal": thermal, "imu": imu,
    }  # fmt: skip
    asked = {kind: items for kind, items in given.items() if items is not None}
    embedders = _embedders(model)
    for kind, items in asked.items():
        if kind not in embedders:
            raise UserError(f"the model embeds {' and '.join(embedders) or 'nothing'}, not {kind}")
        if isinstance(items, str | bytes):
            raise UserError(f"{kind}: expected a list, got {type(items).__name__}")
    if model.processor is None:
        raise UserError("the model came without a tokenizer; put tokenizer.json into its directory")
    return {kind: _rows(model, kind, embedders[kind], list(items), batch_size) for kind, items in asked.items()}


def _embedders(model: Model) -> dict[str, Embedder]:
    """What a model can embed: kind -> function of the bound system and the arrays that its processor makes."""
    system = model.definition.bind(model.parameters)
    if isinstance(system, DualEncoder):
        table: dict[str, Embedder] = {"image": DualEncoder.embed_images, "text": DualEncoder.embed_texts}
        return {kind: table[kind] for kind in system.encoders if kind in table}
    if "image" in system.connectors and getattr(system.connectors["image"], "heads", None) is not None:
        return {"image": blip2.embed_images, "text": blip2.embed_texts}
    return {}


def _rows(model: Model, kind: str, embedder: Embedder, items: list[Any], batch_size: int) -> Float[np.ndarray, "..."]:
    def run(parameters: Any, arrays: tuple[Any, ...]) -> Any:
        return embedder(model.definition.bind(parameters), *arrays)

    compiled = model.cache.setdefault(("decoding.embed", kind), jax.jit(run))
    prepare = {"image": lambda part: (model.processor.images(part),), "text": model.processor.texts}[kind]
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
