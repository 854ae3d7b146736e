"""Vision transformers (arXiv 2010.11929); here the EVA-CLIP tower as BLIP-2 uses it (arXiv 2303.15389, 2301.12597)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from mmjax.layers import stack
from mmjax.layers.linear import Linear
from mmjax.layers.mlp import MLP
from mmjax.layers.multi_head import MultiHeadAttention
from mmjax.layers.norms import LayerNorm
from mmjax.layers.parameters import normal, parameter
from mmjax.layers.parameters import stack as stacked
from mmjax.weights.table import TRANSPOSE, Entry, Table, leading, linear, norm, patches

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer.

    Args:
      width, layers, heads, ffn: of the blocks.
      patch_size, image_size: in pixels.
      activation: an entry of `mmjax.layers.mlp.ACTIVATIONS`.
      eps: of the blocks' norms; `final_eps` of the norm after the tower (BLIP-2's ln_vision).
      key_bias: EVA has biases on queries and values only.
      mean, std: of the pixels, on the scale 0…1.
    """

    width: int
    layers: int
    heads: int
    ffn: int
    patch_size: int
    image_size: int
    activation: str = "gelu"
    eps: float = 1e-6
    final_eps: float = 1e-6
    key_bias: bool = False
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @classmethod
    def eva_clip_g(cls, image_size: int = 224) -> ViTConfig:
        """ViT-g/14 of EVA-CLIP without its last block, the tower of BLIP-2."""
        return cls(width=1408, layers=39, heads=16, ffn=6144, patch_size=14, image_size=image_size)


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: ViTConfig):
        self.attention_norm = LayerNorm(config.width, config.eps)
        self.attention = MultiHeadAttention(config.width, config.heads, key_bias=config.key_bias)
        self.mlp_norm = LayerNorm(config.width, config.eps)
        self.mlp = MLP(config.width, config.ffn, config.activation)

    def __call__(self, x: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        x = x + self.attention(self.attention_norm(x))[0]
        return x + self.mlp(self.mlp_norm(x))


class ViT(nnx.Module):
    """Pixels to one feature per patch, the class token first."""

    def __init__(self, config: ViTConfig):
        self.config = config
        self.patch_embedding = Linear(3 * config.patch_size**2, config.width, (None, "embed"))
        self.class_token = parameter((config.width,), (None,), normal(0.02))
        self.position_embedding = parameter((config.grid**2 + 1, config.width), (None, "embed"), _sine_cosine)
        self.layers = stacked(Block(config), config.layers)
        self.norm = LayerNorm(config.width, config.final_eps)

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.config.width

    def pixels(self, images: UInt8[Array, "b height width 3"]) -> Float[Array, "b height width 3"]:
        """Normalises uint8 pixels."""
        mean, std = jnp.asarray(self.config.mean), jnp.asarray(self.config.std)
        return (images.astype(jnp.float32) / 255 - mean) / std

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b patches d"]:
        """Encodes normalised pixels.

        Returns:
          Features of the class token and of the patches in row-major order, after the final norm: patches = 1 + grid².
        """
        kernel_dtype = self.patch_embedding.kernel[...].dtype
        x = self.patch_embedding(_patches(pixels, self.config.patch_size).astype(kernel_dtype))
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1) + self.position_embedding[...].astype(x.dtype)
        x, _ = stack.run(self.layers, lambda block, x, _: (block(x), None), x)
        return self.norm(x)


def _sine_cosine(key: Array, shape: tuple[int, int], dtype: Any) -> Float[Array, "patches d"]:
    """Two-dimensional sines and cosines (arXiv 2104.02057) as the first value of the learned positions; 0 for the class token.

    Noise of 0.02 would drown in the patches of a narrow tower; this tells neighbours from strangers from the first step.
    """
    patches, width = shape
    grid = round((patches - 1) ** 0.5)
    frequencies = 100.0 ** (-jnp.arange(width // 4) / (width // 4))
    angles = jnp.arange(grid)[:, None] * frequencies
    axis = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    rows = jnp.broadcast_to(axis[:, None], (grid, grid, axis.shape[1]))
    table = jnp.concatenate([rows, rows.swapaxes(0, 1)], axis=-1).reshape(grid**2, -1)
    return jnp.pad(table, ((1, 0), (0, width - table.shape[1]))).astype(dtype)


def _patches(pixels: Float[Array, "b height width c"], size: int) -> Float[Array, "b p values"]:
    """Cuts images into square patches, row-major; a patch's values run channel, y, x like torch's convolution weight."""
    rows, height, width, channels = pixels.shape
    tiles = pixels.reshape(rows, height // size, size, width // size, size, channels)
    return tiles.transpose(0, 1, 3, 5, 2, 4).reshape(rows, -1, channels * size * size)


def weight_table(config: ViTConfig) -> Table:
    """Weights in the layout of Hugging Face's Blip2VisionModel, with one fused matrix for queries, keys and values.

    Its fused bias has room for keys, which EVA has not: a bias of the keys moves all scores of a query alike, so softmax does
    not see it. It is written as zeros and not read.
    """
    layers = range(config.layers)
    block = "encoder.layers.{layer}."
    fused = f"{block}self_attn.qkv"
    table = [
        Entry("class_token", "embeddings.class_embedding", leading(2)),
        Entry("position_embedding", "embeddings.position_embedding", leading(1)),
        Entry("patch_embedding.kernel", "embeddings.patch_embedding.weight", patches(3, config.patch_size)),
        Entry("patch_embedding.bias", "embeddings.patch_embedding.bias"),
        *norm("layers.attention_norm", f"{block}layer_norm1", layers=layers),
        *linear("layers.attention.output", f"{block}self_attn.projection", layers=layers),
        *norm("layers.mlp_norm", f"{block}layer_norm2", layers=layers),
        *linear("layers.mlp.up", f"{block}mlp.fc1", layers=layers),
        *linear("layers.mlp.down", f"{block}mlp.fc2", layers=layers),
        *norm("norm", "post_layernorm"),
    ]
    for i, name in enumerate(("query", "key", "value")):
        has_bias = name != "key" or config.key_bias
        table += [
            Entry(f"layers.attention.{name}.kernel", f"{fused}.weight", TRANSPOSE, layers, part=(i, 3)),
            Entry(f"layers.attention.{name}.bias" if has_bias else None, f"{fused}.bias", layers=layers, part=(i, 3)),
        ]
    return table
