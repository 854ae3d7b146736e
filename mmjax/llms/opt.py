"""OPT (arXiv 2205.01068): the decoder-only language model of BLIP-2."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.mlp import MLP, check_activation
from mmjax.layers.multi_head import KeysValues, MultiHeadAttention
from mmjax.layers.norms import LayerNorm
from mmjax.llms.decoder import Decoder, head_entry
from mmjax.weights.table import Entry, Table, linear, norm

POSITION_OFFSET = 2  # OPT's position table begins with two rows for padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class OPTConfig:
    """Sizes of an OPT model.

    Args:
      embedding_width: of token embeddings and final hidden states, projected in and out where it differs; 0 = width.
      norm_first: each sublayer reads normed input; else its output and the residual are normed together (OPT-350m).
      final_norm: whether a norm follows the last layer. Models with norm_first=False never have one.
      bias: whether linear layers have biases.
      affine_norms: whether norms have scales and biases.
      tied: whether the head is the token embedding.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    ffn: int
    embedding_width: int = 0
    max_positions: int = 2048
    activation: str = "relu"
    eps: float = 1e-5
    norm_first: bool = True
    final_norm: bool = True
    bias: bool = True
    affine_norms: bool = True
    tied: bool = True

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.final_norm and not self.norm_first:
            raise ValueError("final_norm=True needs norm_first=True")
        object.__setattr__(self, "embedding_width", self.embedding_width or self.width)
        check_activation(self.activation)

    @classmethod
    def opt_125m(cls) -> OPTConfig:
        return cls(vocab=50272, width=768, layers=12, heads=12, ffn=3072)

    @classmethod
    def opt_350m(cls) -> OPTConfig:
        """The one whose norms come last, and whose embeddings are narrower than its layers."""
        return cls(
            vocab=50272, width=1024, layers=24, heads=16, ffn=4096, embedding_width=512, norm_first=False, final_norm=False
        )

    @classmethod
    def opt_1_3b(cls) -> OPTConfig:
        return cls(vocab=50272, width=2048, layers=24, heads=32, ffn=8192)

    @classmethod
    def opt_2_7b(cls) -> OPTConfig:
        return cls(vocab=50272, width=2560, layers=32, heads=32, ffn=10240)

    @classmethod
    def opt_6_7b(cls) -> OPTConfig:
        return cls(vocab=50272, width=4096, layers=32, heads=32, ffn=16384)

    @classmethod
    def opt_13b(cls) -> OPTConfig:
        return cls(vocab=50272, width=5120, layers=40, heads=40, ffn=20480)

    @classmethod
    def opt_30b(cls) -> OPTConfig:
        return cls(vocab=50272, width=7168, layers=48, heads=56, ffn=28672)

    @classmethod
    def opt_66b(cls) -> OPTConfig:
        return cls(vocab=50272, width=9216, layers=64, heads=72, ffn=36864)


def _norm(config: OPTConfig) -> LayerNorm:
    return LayerNorm(config.width, config.eps, scale=config.affine_norms, bias=config.affine_norms)


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x)); or with the norms last: x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, config: OPTConfig):
        self.attention_norm = _norm(config)
        self.attention = MultiHeadAttention(config.width, config.heads, bias=config.bias)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config.width, config.ffn, config.activation, bias=config.bias)
        self.norm_first = config.norm_first

    def __call__(self, x: Float[Array, "b t d"], **told: Any) -> tuple[Float[Array, "b t d"], KeysValues]:
        if self.norm_first:
            attended, keys_values = self.attention(self.attention_norm(x), **told)
            x = x + attended
            return x + self.mlp(self.mlp_norm(x)), keys_values
        attended, keys_values = self.attention(x, **told)
        x = self.attention_norm(x + attended)
        return self.mlp_norm(x + self.mlp(x)), keys_values


class OPT(Decoder):
    """Learned positions; where embeddings are narrower than the layers, a projection into them and one out."""

    def __init__(self, config: OPTConfig):
        width, final_norm = config.embedding_width, _norm(config) if config.final_norm else None
        super().__init__(config, Block(config), final_norm, embedding_width=width, positions=config.max_positions)
        self.position_embedding = Embedding(config.max_positions + POSITION_OFFSET, config.width, (None, "embed"))
        projected = width != config.width
        self.project_in = Linear(width, config.width, bias=False) if projected else None
        self.project_out = Linear(config.width, width, bias=False) if projected else None

    def enter(self, embeddings: Float[Array, "b t e"], positions: Int[Array, "b t"]) -> tuple[Array, dict[str, Any]]:
        x = embeddings if self.project_in is None else self.project_in(embeddings)
        return x + self.position_embedding(positions + POSITION_OFFSET, x.dtype), {}

    def leave(self, x: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        x = super().leave(x)
        return x if self.project_out is None else self.project_out(x)


def weight_table(config: OPTConfig) -> Table:
    """Weights in the layout of Hugging Face's OPTForCausalLM; old files leave out the leading "model."."""
    layers, bias = range(config.layers), config.bias
    block = "model.decoder.layers.{layer}."
    projections = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "mlp.up": "fc1",
        "mlp.down": "fc2",
    }
    table = [
        Entry("token_embedding.table", "model.decoder.embed_tokens.weight", vocab=config.vocab),
        Entry("position_embedding.table", "model.decoder.embed_positions.weight"),
    ]
    for ours, theirs in projections.items():
        table += linear(f"layers.{ours}", f"{block}{theirs}", bias=bias, layers=layers)
    if config.affine_norms:
        table += norm("layers.attention_norm", f"{block}self_attn_layer_norm", layers=layers)
        table += norm("layers.mlp_norm", f"{block}final_layer_norm", layers=layers)
        table += norm("norm", "model.decoder.final_layer_norm") if config.final_norm else []
    if config.embedding_width != config.width:
        table += linear("project_in", "model.decoder.project_in", bias=False)
        table += linear("project_out", "model.decoder.project_out", bias=False)
    table.append(head_entry(config))
    keys = [(entry, str(entry.theirs)) for entry in table]
    return [dataclasses.replace(entry, theirs=(key, key.removeprefix("model."))) for entry, key in keys]
