"""Encoders without a language model: one, or two whose vectors are compared (CLIP, arXiv 2103.00020; SigLIP, 2303.15343)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from mmjax.layers.parameters import constant, parameter
from mmjax.objectives.contrastive import normalise


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """How vectors of two modalities are compared: exp(log_scale) · ⟨a, b⟩ (+ bias).

    Args:
      bias: SigLIP, whose logits go through a sigmoid each, has one.
      initial_log_scale, initial_bias: before training.
    """

    bias: bool = False
    initial_log_scale: float = math.log(1 / 0.07)
    initial_bias: float = -10.0

    @classmethod
    def clip(cls) -> SimilarityConfig:
        """CLIP's, before training."""
        return cls()

    @classmethod
    def siglip(cls) -> SimilarityConfig:
        """SigLIP's, before training."""
        return cls(bias=True, initial_log_scale=math.log(10))


class Similarity(nnx.Module):
    """Logits of all pairs of two sets of vectors of length one."""

    def __init__(self, config: SimilarityConfig):
        self.log_scale = parameter((), (), constant(config.initial_log_scale))
        self.bias = parameter((), (), constant(config.initial_bias)) if config.bias else None

    def __call__(self, a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
        logits = jnp.exp(self.log_scale[...].astype(jnp.float32)) * (a @ b.T)
        return logits if self.bias is None else logits + self.bias[...].astype(jnp.float32)


class DualEncoder(nnx.Module):
    """Encoders side by side.

    Args:
      encoders: by modality, "image" or "text" or both.
      similarity: of a model with both; None = their vectors are not compared.
    """

    def __init__(self, encoders: dict[str, nnx.Module], similarity: nnx.Module | None):
        self.encoders: Any = nnx.Dict(encoders)
        self.similarity: Any = similarity

    def embed_images(self, images: UInt8[Array, "b height width 3"]) -> Float[Array, "b d"]:
        """One vector for each picture; of length one where the model compares pictures and texts."""
        encoder = self.encoders["image"]
        return self._vector(encoder.embedding(encoder.pixels(images)))

    def embed_texts(self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b d"]:
        """One vector for each text; of length one where the model compares pictures and texts."""
        encoder = self.encoders["text"]
        # SigLIP was trained on texts filled up to one length, whose filling it sees.
        return self._vector(encoder.embedding(tokens, None if encoder.config.pooling == "last" else mask))

    def _vector(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        return x.astype(jnp.float32) if self.similarity is None else normalise(x)
