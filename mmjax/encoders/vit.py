"""Vision transformers (arXiv 2010.11929): ViT itself, and the towers of CLIP (arXiv 2103.00020), EVA-CLIP as BLIP-2 uses it
(arXiv 2303.15389, 2301.12597) and SigLIP (arXiv 2303.15343). One trunk; what they differ in are fields of its config.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from mmjax.layers import stack
from mmjax.layers.attention import attend
from mmjax.layers.blocks import EncoderBlock, block_table, run_blocks
from mmjax.layers.interpolation import resize_grid
from mmjax.layers.linear import Linear
from mmjax.layers.mlp import ACTIVATIONS, MLP
from mmjax.layers.multi_head import MultiHeadAttention
from mmjax.layers.norms import LayerNorm
from mmjax.layers.parameters import normal, parameter
from mmjax.layers.parameters import stack as stacked
from mmjax.weights.table import TRANSPOSE, Entry, Spelling, Table, leading, linear, norm, patches

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # mean and deviation where pixels are only brought to −1…1

Layout = Literal["vit", "clip", "eva", "siglip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes and kind of a vision transformer; the defaults are EVA-CLIP's.

    Args:
      width, layers, heads, ffn: of the blocks.
      patch_size, image_size: in pixels; what is left of a side beyond whole patches is not seen.
      activation: an entry of `mmjax.layers.mlp.ACTIVATIONS`.
      eps: of the blocks' norms; `final_eps` of the norm after the tower (BLIP-2's ln_vision).
      qkv_bias: whether queries, keys and values have biases; the keys' also needs `key_bias`, which EVA has not.
      patch_bias: whether the patch embedding has a bias.
      class_token: whether a learned token stands before the patches.
      pre_norm: a norm before the first block (CLIP).
      norm_pooled: the final norm is for the pooled vector only (CLIP), not for the features.
      pooling: one vector for the picture: "class" the class token's feature, "tanh" tanh of a linear map of it, "attention"
        what a learned query sees (SigLIP), "mean" over all features.
      projection: width of the space that pictures share with texts, into which pooled vectors are projected; 0 = none.
      classes: outputs of a classifier of the pooled vector; 0 = none.
      depth: features are those after this many blocks, without the final norm, or counted from the last (−1), which LLaVA
        does: −2; None = after the final norm.
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
    qkv_bias: bool = True
    key_bias: bool = False
    patch_bias: bool = True
    class_token: bool = True
    pre_norm: bool = False
    norm_pooled: bool = False
    pooling: Literal["class", "tanh", "attention", "mean"] = "class"
    projection: int = 0
    classes: int = 0
    depth: int | None = None
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self):
        if not 1 <= self.patch_size <= self.image_size:
            raise ValueError(f"image_size={self.image_size} is smaller than patch_size={self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown; there are {', '.join(ACTIVATIONS)}")
        if self.pooling in ("class", "tanh") and not self.class_token:
            raise ValueError(f"pooling={self.pooling!r} needs class_token=True")
        if self.depth is not None and not -self.layers - 1 <= self.depth <= self.layers:
            raise ValueError(f"depth={self.depth} lies outside the tower's {self.layers} layers")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def positions(self) -> int:
        """Features of a picture."""
        return self.grid**2 + self.class_token

    @classmethod
    def vit_b(cls, patch_size: int = 16, image_size: int = 224) -> ViTConfig:
        """ViT-Base."""
        return _vit(768, 12, 12, 3072, patch_size, image_size)

    @classmethod
    def vit_l(cls, patch_size: int = 16, image_size: int = 224) -> ViTConfig:
        """ViT-Large."""
        return _vit(1024, 24, 16, 4096, patch_size, image_size)

    @classmethod
    def vit_h(cls, patch_size: int = 14, image_size: int = 224) -> ViTConfig:
        """ViT-Huge."""
        return _vit(1280, 32, 16, 5120, patch_size, image_size)

    @classmethod
    def clip_b(cls, patch_size: int = 32) -> ViTConfig:
        """OpenAI's CLIP ViT-B/32 or, with patch_size=16, B/16."""
        return _clip(768, 12, 12, 3072, patch_size, 224, projection=512)

    @classmethod
    def clip_l(cls, image_size: int = 224) -> ViTConfig:
        """OpenAI's CLIP ViT-L/14, also released for image_size=336."""
        return _clip(1024, 24, 16, 4096, 14, image_size, projection=768)

    @classmethod
    def clip_h(cls) -> ViTConfig:
        """OpenCLIP's ViT-H/14."""
        return _clip(1280, 32, 16, 5120, 14, 224, projection=1024, activation="gelu")

    @classmethod
    def clip_g(cls) -> ViTConfig:
        """OpenCLIP's ViT-g/14."""
        return _clip(1408, 40, 16, 6144, 14, 224, projection=1024, activation="gelu")

    @classmethod
    def clip_bigg(cls) -> ViTConfig:
        """OpenCLIP's ViT-bigG/14."""
        return _clip(1664, 48, 16, 8192, 14, 224, projection=1280, activation="gelu")

    @classmethod
    def eva_clip_g(cls, image_size: int = 224) -> ViTConfig:
        """ViT-g/14 of EVA-CLIP without its last block, the tower of BLIP-2."""
        return cls(width=1408, layers=39, heads=16, ffn=6144, patch_size=14, image_size=image_size)

    @classmethod
    def siglip_b(cls, patch_size: int = 16, image_size: int = 224) -> ViTConfig:
        """SigLIP base."""
        return _siglip(768, 12, 12, 3072, patch_size, image_size)

    @classmethod
    def siglip_l(cls, image_size: int = 256) -> ViTConfig:
        """SigLIP large."""
        return _siglip(1024, 24, 16, 4096, 16, image_size)

    @classmethod
    def siglip_so400m(cls, image_size: int = 384) -> ViTConfig:
        """SigLIP with the shape-optimised tower of 400 million parameters (arXiv 2305.13035)."""
        return _siglip(1152, 27, 16, 4304, 14, image_size)


def _vit(width: int, layers: int, heads: int, ffn: int, patch_size: int, image_size: int) -> ViTConfig:
    return ViTConfig(
        width=width, layers=layers, heads=heads, ffn=ffn, patch_size=patch_size, image_size=image_size,
        eps=1e-12, final_eps=1e-12, key_bias=True, pooling="tanh", mean=HALF, std=HALF,
    )  # fmt: skip


def _clip(
    width: int, layers: int, heads: int, ffn: int, patch_size: int, image_size: int, *,
    projection: int, activation: str = "quick_gelu",
) -> ViTConfig:  # fmt: skip
    return ViTConfig(
        width=width, layers=layers, heads=heads, ffn=ffn, patch_size=patch_size, image_size=image_size,
        activation=activation, eps=1e-5, final_eps=1e-5, key_bias=True, patch_bias=False, pre_norm=True, norm_pooled=True,
        projection=projection,
    )  # fmt: skip


def _siglip(width: int, layers: int, heads: int, ffn: int, patch_size: int, image_size: int) -> ViTConfig:
    return ViTConfig(
        width=width, layers=layers, heads=heads, ffn=ffn, patch_size=patch_size, image_size=image_size,
        activation="gelu_pytorch_tanh", key_bias=True, class_token=False, pooling="attention", mean=HALF, std=HALF,
    )  # fmt: skip


class AttentionPooling(nnx.Module):
    """A learned query attends to all features; then a feed-forward layer with residual (arXiv 2106.04560)."""

    def __init__(self, config: ViTConfig):
        self.query = parameter((config.width,), (None,), normal(config.width**-0.5))
        self.attention = MultiHeadAttention(config.width, config.heads)
        self.norm = LayerNorm(config.width, config.eps)
        self.mlp = MLP(config.width, config.ffn, config.activation)

    def __call__(self, features: Float[Array, "b p d"]) -> Float[Array, "b d"]:
        rows, _, width = features.shape
        query = jnp.broadcast_to(self.query[...].astype(features.dtype), (rows, 1, width))
        attended = attend(self.attention.queries(query), *self.attention.keys_values(features))
        x = self.attention.merge(attended)[:, 0]
        return x + self.mlp(self.norm(x))


def _pooler(config: ViTConfig) -> nnx.Module | None:
    if config.pooling == "attention":
        return AttentionPooling(config)
    return Linear(config.width, config.width) if config.pooling == "tanh" else None


class ViT(nnx.Module):
    """Pixels to one feature per patch, the class token first, or to one vector per picture."""

    def __init__(self, config: ViTConfig):
        self.config = config
        patch_values = 3 * config.patch_size**2
        self.patch_embedding = Linear(patch_values, config.width, (None, "embed"), bias=config.patch_bias)
        self.class_token = parameter((config.width,), (None,), normal(0.02)) if config.class_token else None
        self.position_embedding = parameter((config.positions, config.width), (None, "embed"), _sine_cosine)
        self.pre_norm = LayerNorm(config.width, config.eps) if config.pre_norm else None
        block = EncoderBlock(
            config.width, config.heads, config.ffn, config.activation, config.eps,
            qkv_bias=config.qkv_bias, key_bias=config.key_bias,
        )  # fmt: skip
        self.layers = stacked(block, config.layers)
        self.norm = LayerNorm(config.width, config.final_eps)
        self.pooler = _pooler(config)
        self.projection = Linear(config.width, config.projection, ("embed", None), bias=False) if config.projection else None
        self.classifier = Linear(config.width, config.classes, ("embed", None)) if config.classes else None

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
          Features of the class token (where there is one) and of the patches in row-major order, at the config's depth.
        """
        depth = self.config.depth
        if depth is None:
            return self.features(pixels)
        blocks = depth if depth >= 0 else self.config.layers + 1 + depth
        x = self.embed(pixels)
        return run_blocks(stack.first(self.layers, blocks), x) if blocks else x

    def features(self, pixels: Float[Array, "b height width 3"], interpolate: bool = False) -> Float[Array, "b patches d"]:
        """Features after the last block, and after the final norm where it is theirs."""
        return self.finish(self.encode(pixels, interpolate))

    def encode(self, pixels: Float[Array, "b height width 3"], interpolate: bool = False) -> Float[Array, "b patches d"]:
        """The output of the last block. Arguments as in `embed`."""
        return run_blocks(self.layers, self.embed(pixels, interpolate))

    def embed(self, pixels: Float[Array, "b height width 3"], interpolate: bool = False) -> Float[Array, "b patches d"]:
        """What the first block reads: patches, class token and positions.

        Args:
          interpolate: resize the grid of positions to pictures of another size; without it they raise ValueError.
        """
        kernel_dtype = self.patch_embedding.kernel[...].dtype
        rows, columns = (side // self.config.patch_size for side in pixels.shape[1:3])
        x = self.patch_embedding(_patches(pixels, self.config.patch_size).astype(kernel_dtype))
        if self.class_token is not None:
            first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([first, x], axis=1)
        positions = self.position_embedding[...]
        if interpolate:
            positions = resize_positions(positions, rows, columns)
        elif (rows, columns) != (self.config.grid,) * 2:
            raise ValueError(f"expected {self.config.grid} × {self.config.grid} patches, got {rows} × {columns}")
        x = x + positions.astype(x.dtype)
        return x if self.pre_norm is None else self.pre_norm(x)

    def finish(self, x: Float[Array, "b patches d"]) -> Float[Array, "b patches d"]:
        """The features of the last block's output."""
        return x if self.config.norm_pooled else self.norm(x)

    def pool(self, features: Float[Array, "b patches d"]) -> Float[Array, "b d"]:
        """One vector for each picture, from its features after the last block."""
        match self.config.pooling:
            case "mean":
                pooled = features.mean(1)
            case "attention":
                pooled = self.pooler(features)
            case "tanh":
                pooled = jnp.tanh(self.pooler(features[:, 0]))
            case _:
                pooled = features[:, 0]
        return self.norm(pooled) if self.config.norm_pooled else pooled

    def embedding(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b d"]:
        """One vector for each picture, projected where the tower has a space shared with texts."""
        pooled = self.pool(self.features(pixels))
        return pooled if self.projection is None else self.projection(pooled)


def resize_positions(table: Float[Array, "positions d"], rows: int, columns: int) -> Float[Array, "resized d"]:
    """Learned positions for another number of patches; the class token's, where there is one, stays.

    Args:
      table: of a square grid, row-major, the class token first.
      rows, columns: patches wanted.
    """
    grid = math.isqrt(table.shape[0])
    if (rows, columns) == (grid, grid):
        return table
    rest = table.shape[0] - grid**2
    resized = resize_grid(table[rest:].reshape(grid, grid, -1), rows, columns)
    return jnp.concatenate([table[:rest], resized.reshape(rows * columns, -1)])


def _sine_cosine(key: Array, shape: tuple[int, int], dtype: Any) -> Float[Array, "patches d"]:
    """Two-dimensional sines and cosines (arXiv 2104.02057) as the first value of the learned positions; 0 for the class token.

    Noise of 0.02 would drown in the patches of a narrow tower; this tells neighbours from strangers from the first step.
    """
    patches, width = shape
    grid = math.isqrt(patches)
    frequencies = 100.0 ** (-jnp.arange(width // 4) / (width // 4))
    angles = jnp.arange(grid)[:, None] * frequencies
    axis = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    rows = jnp.broadcast_to(axis[:, None], (grid, grid, axis.shape[1]))
    table = jnp.concatenate([rows, rows.swapaxes(0, 1)], axis=-1).reshape(grid**2, -1)
    return jnp.pad(table, ((patches - grid**2, 0), (0, width - table.shape[1]))).astype(dtype)


def _patches(pixels: Float[Array, "b height width c"], size: int) -> Float[Array, "b p values"]:
    """Cuts images into square patches, row-major; a patch's values run channel, y, x like torch's convolution weight."""
    rows, height, width, channels = pixels.shape
    pixels = pixels[:, : height // size * size, : width // size * size]
    tiles = pixels.reshape(rows, height // size, size, width // size, size, channels)
    return tiles.transpose(0, 1, 3, 5, 2, 4).reshape(rows, -1, channels * size * size)


# Their names of the blocks' tensors: of both towers of CLIP and SigLIP, and of ViT, first as in its files, then as in the
# memory of transformers 5, which can write them too.
CLIP_BLOCK = {
    "attention_norm": "layer_norm1", "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
    "output": "self_attn.out_proj", "mlp_norm": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
_VIT_BLOCK = {
    "attention_norm": ("layernorm_before", "layernorm_before"),
    "query": ("attention.attention.query", "attention.q_proj"),
    "key": ("attention.attention.key", "attention.k_proj"),
    "value": ("attention.attention.value", "attention.v_proj"),
    "output": ("attention.output.dense", "attention.o_proj"),
    "mlp_norm": ("layernorm_after", "layernorm_after"),
    "up": ("intermediate.dense", "mlp.fc1"),
    "down": ("output.dense", "mlp.fc2"),
}


def weight_table(config: ViTConfig, layout: Layout = "eva") -> Table:
    """Weights in the layout of a Hugging Face class, without its prefix.

    Args:
      layout: "vit" ViTModel, "clip" CLIPVisionModel, "eva" Blip2VisionModel, "siglip" SiglipVisionModel. Projection and
        classifier lie outside these classes and their layouts.
    """
    table = {"vit": _vit_table, "clip": _clip_table, "eva": _eva_table, "siglip": _siglip_table}[layout](config)
    return table if config.patch_bias else [entry for entry in table if entry.ours != "patch_embedding.bias"]


def _patch_table(config: ViTConfig, theirs: str) -> Table:
    kernel = Entry("patch_embedding.kernel", f"{theirs}.weight", patches(3, config.patch_size))
    return [kernel, Entry("patch_embedding.bias", f"{theirs}.bias")]


def _vit_table(config: ViTConfig) -> Table:
    names: dict[str, Spelling] = {
        ours: (f"encoder.layer.{{layer}}.{file}", f"layers.{{layer}}.{memory}") for ours, (file, memory) in _VIT_BLOCK.items()
    }
    return [
        Entry("class_token", "embeddings.cls_token", leading(2)),
        Entry("position_embedding", "embeddings.position_embeddings", leading(1)),
        *_patch_table(config, "embeddings.patch_embeddings.projection"),
        *block_table(names, config.layers, qkv_bias=config.qkv_bias, key_bias=config.key_bias),
        *norm("norm", "layernorm"),
        *(linear("pooler", "pooler.dense") if config.pooling == "tanh" else []),
    ]


def _clip_table(config: ViTConfig) -> Table:
    names: dict[str, Spelling] = {ours: f"encoder.layers.{{layer}}.{theirs}" for ours, theirs in CLIP_BLOCK.items()}
    return [
        *([Entry("class_token", "embeddings.class_embedding")] if config.class_token else []),
        Entry("position_embedding", "embeddings.position_embedding.weight"),
        *_patch_table(config, "embeddings.patch_embedding"),
        *(norm("pre_norm", "pre_layrnorm") if config.pre_norm else []),  # their spelling
        *block_table(names, config.layers),
        *norm("norm", "post_layernorm"),
    ]


def _siglip_table(config: ViTConfig) -> Table:
    """CLIP's names, and those of the pooling head, which has one fused matrix for queries, keys and values."""
    if config.pooling != "attention":
        return _clip_table(config)
    return [
        *_clip_table(config),
        Entry("pooler.query", "head.probe", leading(2)),
        *_fused("pooler.attention", "head.attention.in_proj_weight", "head.attention.in_proj_bias"),
        *linear("pooler.attention.output", "head.attention.out_proj"),
        *norm("pooler.norm", "head.layernorm"),
        *linear("pooler.mlp.up", "head.mlp.fc1"),
        *linear("pooler.mlp.down", "head.mlp.fc2"),
    ]


def _eva_table(config: ViTConfig) -> Table:
    """One fused matrix for queries, keys and values.

    Its fused bias has room for keys, which EVA has not: a bias of the keys moves all scores of a query alike, so softmax does
    not see it. It is written as zeros and not read.
    """
    layers = range(config.layers)
    block = "encoder.layers.{layer}."
    table = [
        Entry("class_token", "embeddings.class_embedding", leading(2)),
        Entry("position_embedding", "embeddings.position_embedding", leading(1)),
        *_patch_table(config, "embeddings.patch_embedding"),
        *norm("layers.attention_norm", f"{block}layer_norm1", layers=layers),
        *linear("layers.attention.output", f"{block}self_attn.projection", layers=layers),
        *norm("layers.mlp_norm", f"{block}layer_norm2", layers=layers),
        *linear("layers.mlp.up", f"{block}mlp.fc1", layers=layers),
        *linear("layers.mlp.down", f"{block}mlp.fc2", layers=layers),
        *norm("norm", "post_layernorm"),
    ]
    bias = f"{block}self_attn.qkv.bias" if config.qkv_bias else ""
    return table + _fused("layers.attention", f"{block}self_attn.qkv.weight", bias, layers, key_bias=config.key_bias)


def _fused(ours: str, weight: str, bias: str, layers: range | None = None, *, key_bias: bool = True) -> Table:
    """Entries of queries, keys and values that are thirds of one tensor of theirs; bias "" = there is none."""
    table = []
    for i, name in enumerate(("query", "key", "value")):
        table.append(Entry(f"{ours}.{name}.kernel", weight, TRANSPOSE, layers, part=(i, 3)))
        if bias:
            path = f"{ours}.{name}.bias" if key_bias or name != "key" else None
            table.append(Entry(path, bias, layers=layers, part=(i, 3)))
    return table
