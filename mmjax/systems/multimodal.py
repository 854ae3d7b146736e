"""The five-part composition: media → encoder → connector → language model, with text on the way.

A published system is a choice of parts. This module wires them; it does not know which ones they are.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.parallel.rows import ROWS, TEXT, keep, keep_media, mesh_size
from mmjax.types import Batch


class MultimodalLM(nnx.Module):
    """A language model that reads media through encoders and connectors.

    Args:
      encoders: by modality; None values are not allowed.
      connectors: by modality.
      llm: the language model; None where connectors are trained or scored by themselves.
    """

    def __init__(self, encoders: dict[str, nnx.Module], connectors: dict[str, nnx.Module], llm: nnx.Module | None):
        self.encoders: Any = nnx.Dict(encoders)
        self.connectors: Any = nnx.Dict(connectors)
        self.llm: Any = llm

    def encode(self, batch: Batch, modality: str) -> Float[Array, "b n p e"]:
        """Features of every media slot of the batch."""
        encoder, values = self.encoders[modality], jnp.asarray(batch.media[modality].values)
        rows, slots = values.shape[:2]
        with jax.named_scope(f"encoders.{modality}"):
            values = jnp.pad(values, ((0, 0), (0, _spare_slots(rows, slots)), *[(0, 0)] * (values.ndim - 2)))
            flat = keep(values.reshape(-1, *values.shape[2:]), *ROWS)
            features = encoder(encoder.pixels(flat))
            return keep_media(features.reshape(rows, -1, *features.shape[1:])[:, :slots])

    def connect(self, batch: Batch, modality: str, key: Array | None = None) -> Float[Array, "b mk d"]:
        """Soft tokens of a modality: those of each query (or of each medium, where nothing is asked), in order."""
        features = self.encode(batch, modality)
        queries = batch.queries.get(modality)
        asked = (None, None, None) if queries is None else (queries.medium, queries.tokens, queries.mask)
        with jax.named_scope(f"connectors.{modality}"):
            return self.connectors[modality].connect(features, *asked, key=key)

    def embeddings(self, batch: Batch, key: Array | None = None) -> Float[Array, "b t_or_s d"]:
        """What the language model reads first, source or text: tokens, and soft tokens where `feature_index` points."""
        read = batch.text if batch.source is None else batch.source
        with jax.named_scope("llm"):
            tokens = self.llm.embed(read.tokens)
        if not batch.media:
            return tokens
        soft = jnp.concatenate([self.connect(batch, modality, key) for modality in sorted(batch.media)], axis=1)
        # Any position may ask for any soft token of its row: sequence parallelism gathers them, and places its own positions'.
        return place(keep(soft, "batch"), keep(tokens, *TEXT), batch.feature_index)

    def begin(self, batch: Batch, key: Array | None = None) -> tuple[Float[Array, "b t d"], dict[str, Any]]:
        """What the language model reads at the text's positions, and what it is told besides: an encoder–decoder its source."""
        embeddings, source = self.embeddings(batch, key), batch.source
        if source is None:
            return embeddings, {}
        with jax.named_scope("llm"):
            encoded = self.llm.encode(embeddings, source.positions, source.segments)
            return self.llm.embed(batch.text.tokens), {"source": encoded}

    def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, "b t d"]:
        """Final hidden states of the language model over the batch's text rows."""
        embeddings, told = self.begin(batch, key)
        with jax.named_scope("llm"):
            return self.llm(embeddings, batch.text.positions, batch.text.segments, **told)[0]

    def attention_maps(self, batch: Batch) -> Float[Array, "b m q p"]:
        """The image connector's last cross-attention, averaged over heads, over the patches (class token left out)."""
        queries = batch.queries.get("image")
        asked: tuple[Any, ...] = () if queries is None else (queries.medium, queries.tokens, queries.mask)
        return self.connectors["image"](self.encode(batch, "image"), *asked, maps=True).maps[..., 1:]


def _spare_slots(rows: int, slots: int) -> int:
    """Empty slots to add to each row, so that sequence parallelism shares out its pictures evenly."""
    shares = mesh_size("sequence")
    local = rows // math.gcd(rows, mesh_size("replica") * mesh_size("fsdp"))  # rows of a group that sequence splits
    return -slots % (shares // math.gcd(shares, local))


def place(soft: Float[Array, "b mk d"], tokens: Float[Array, "b t d"], index: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """Puts soft token index[b, t] at position t; −1 keeps the token embedding."""
    index = index[:, :, None]
    placed = jnp.take_along_axis(soft.astype(tokens.dtype), jnp.maximum(index, 0), axis=1)
    return jnp.where(index >= 0, placed, tokens)
