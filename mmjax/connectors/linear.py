"""Linear and MLP connectors: each image feature becomes a soft token by itself.

LLaVA's linear map (arXiv 2304.08485), the MLP of LLaVA-1.5 (arXiv 2310.03744), and the map of four neighbours at once with
which MiniGPT-4 does without a Q-Former.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import Linear
from mmjax.layers.mlp import ACTIVATIONS, check_activation
from mmjax.layers.parameters import normal, parameter
from mmjax.parallel.rows import keep_media
from mmjax.weights.table import Entry, Spelling, Table, linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Sizes of a connector that maps features one by one.

    Args:
      encoder_width: of the image features.
      output_width: of the language model.
      layers: linear maps, with `activation` between them: 1, LLaVA 1.0; 2, LLaVA 1.5 and 1.6.
      activation: an entry of `mmjax.layers.mlp.ACTIVATIONS`.
      bias: whether the maps have one.
      skip: features that are left out at the beginning, 1 where the encoder has a class token.
      merge: neighbours in raster order that become one soft token, side by side: a strip, not a square.
      newline: whether there is a learned soft token that ends each row of a picture in tiles (LLaVA 1.6).
    """

    encoder_width: int
    output_width: int
    layers: int = 1
    activation: str = "gelu"
    bias: bool = True
    skip: int = 1
    merge: int = 1
    newline: bool = False

    def __post_init__(self):
        check_activation(self.activation)
        for name in ("layers", "merge"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.skip < 0:
            raise ValueError(f"skip must be 0 or more, got {self.skip}")

    def soft_tokens(self, features: int) -> int:
        """Soft tokens per medium, k, of an encoder that gives so many features."""
        shown = features - self.skip
        if shown < 1 or shown % self.merge:
            raise ValueError(f"merge={self.merge} does not divide the {shown} features that are left after skip={self.skip}")
        return shown // self.merge


class LinearConnector(nnx.Module):
    """Image features to soft tokens, one for each `merge` of them."""

    def __init__(self, config: LinearConfig):
        self.config = config
        widths = [config.encoder_width * config.merge, *[config.output_width] * config.layers]
        maps = [Linear(wide, out, bias=config.bias) for wide, out in zip(widths, widths[1:], strict=False)]
        self.maps: Any = nnx.List(maps)
        newline = parameter((config.output_width,), (None,), normal(config.output_width**-0.5))
        self.newline = newline if config.newline else None

    def connect(
        self, features: Float[Array, "b n p e"], medium: Any = None, tokens: Any = None, token_mask: Any = None, key: Any = None
    ) -> Float[Array, "b k d"]:
        """Soft tokens for the language model: those of each medium in order, and last of all the newline where there is one.

        `medium`, `tokens`, `token_mask` and `key` belong to connectors that read text or drop out.
        """
        shown = features[:, :, self.config.skip :]
        rows, slots, _, _ = shown.shape
        first, *rest = self.maps
        x = first(shown.reshape(rows, slots, -1, self.config.encoder_width * self.config.merge))
        for each in rest:
            x = each(keep_media(ACTIVATIONS[self.config.activation](x)))
        x = keep_media(x).reshape(rows, -1, x.shape[-1])
        if self.newline is None:
            return x
        newline = jnp.broadcast_to(self.newline[...].astype(x.dtype), (rows, 1, x.shape[-1]))
        return jnp.concatenate([x, newline], axis=1)


def weight_table(config: LinearConfig, maps: tuple[Spelling, ...], newline: Spelling = "image_newline") -> Table:
    """The connector's weights under the names that their owner gives to each linear map, and to the newline."""
    table = [entry for index, theirs in enumerate(maps) for entry in linear(f"maps.{index}", theirs, bias=config.bias)]
    return [*table, *([Entry("newline", newline)] if config.newline else [])]
