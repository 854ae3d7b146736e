"""The block of a transformer encoder, alone and as a stack, and how files name its weights."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers import stack
from mmjax.layers.mlp import MLP
from mmjax.layers.multi_head import MultiHeadAttention
from mmjax.layers.norms import LayerNorm
from mmjax.weights.table import Spelling, Table, linear, norm


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward layer, each with a residual and a norm.

    Args:
      width, heads, ffn: sizes.
      activation: an entry of `mmjax.layers.mlp.ACTIVATIONS`.
      eps: of the norms.
      post_norm: the norms stand behind the residual sums, as in the first transformers (arXiv 1706.03762), not before the
        sub-layers (arXiv 2002.04745).
      qkv_bias: whether queries, keys and values have biases; the keys' also needs `key_bias`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ffn: int,
        activation: str,
        eps: float,
        *,
        post_norm: bool = False,
        qkv_bias: bool = True,
        key_bias: bool = True,
    ):
        self.attention_norm = LayerNorm(width, eps)
        self.attention = MultiHeadAttention(width, heads, bias=qkv_bias, key_bias=qkv_bias and key_bias, output_bias=True)
        self.mlp_norm = LayerNorm(width, eps)
        self.mlp = MLP(width, ffn, activation)
        self.post_norm = post_norm

    def __call__(self, x: Float[Array, "b p d"], mask: Bool[Array, "b 1 p p"] | None = None) -> Float[Array, "b p d"]:
        if self.post_norm:
            x = self.attention_norm(x + self.attention(x, mask)[0])
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention(self.attention_norm(x), mask)[0]
        return x + self.mlp(self.mlp_norm(x))


def run_blocks(
    blocks: EncoderBlock, x: Float[Array, "b p d"], mask: Bool[Array, "b 1 p p"] | None = None
) -> Float[Array, "b p d"]:
    """The output of the last of a stack of blocks."""
    return stack.run(blocks, lambda block, x, _: (block(x, mask), None), x)[0]


def block_table(
    names: Mapping[str, Spelling], layers: int, *, ours: str = "layers", qkv_bias: bool = True, key_bias: bool = True
) -> Table:
    """The weight table of a stack of blocks.

    Args:
      names: their keys of attention_norm, query, key, value, output, mlp_norm, up and down, with "{layer}".
      layers: number of blocks.
      ours: path of the stack.
      qkv_bias, key_bias: as in the block.
    """
    numbers = range(layers)
    table = [entry for name in ("attention_norm", "mlp_norm") for entry in norm(f"{ours}.{name}", names[name], layers=numbers)]
    biases = {"query": qkv_bias, "key": qkv_bias and key_bias, "value": qkv_bias, "output": True}
    for name, bias in biases.items():
        table += linear(f"{ours}.attention.{name}", names[name], bias=bias, layers=numbers)
    for name in ("up", "down"):
        table += linear(f"{ours}.mlp.{name}", names[name], layers=numbers)
    return table
