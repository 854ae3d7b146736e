"""PaLM (arXiv 2204.02311): blocks whose two sublayers read the same normed input, and one head of keys for all queries."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.mlp import GatedMLP, check_activation
from mmjax.layers.multi_head import KeysValues, MultiHeadAttention
from mmjax.layers.norms import LayerNorm
from mmjax.layers.parameters import normal
from mmjax.layers.positions import RotaryScaling, rotary_angles
from mmjax.llms.decoder import Decoder, head_entry
from mmjax.weights.table import Entry, Table, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaLMConfig:
    """Sizes of a PaLM model. Nothing in it has a bias.

    Args:
      kv_heads: 1 = multi-query attention (arXiv 1911.02150).
      head_dim: 0 = width / heads; in the paper 256, whatever the width.
      rope_base, rope_scaling: of the rotary frequencies, see `mmjax.layers.positions`.
      logit_scale: of the logits; 0 = width^−½, as in the paper, whose token embeddings have variance 1.
      tied: whether the head is the token embedding.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    ffn: int
    kv_heads: int = 1
    head_dim: int = 0
    rope_base: float = 10000.0
    rope_scaling: RotaryScaling | None = None
    eps: float = 1e-5
    activation: str = "silu"
    max_positions: int = 2048
    logit_scale: float = 0.0
    tied: bool = True

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        object.__setattr__(self, "head_dim", self.head_dim or self.width // self.heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions turn pairs of features")
        object.__setattr__(self, "logit_scale", self.logit_scale or self.width**-0.5)
        check_activation(self.activation)

    @classmethod
    def palm_8b(cls) -> PaLMConfig:
        return cls(vocab=256000, width=4096, layers=32, heads=16, head_dim=256, ffn=16384)

    @classmethod
    def palm_62b(cls) -> PaLMConfig:
        return cls(vocab=256000, width=8192, layers=64, heads=32, head_dim=256, ffn=32768)

    @classmethod
    def palm_540b(cls) -> PaLMConfig:
        return cls(vocab=256000, width=18432, layers=118, heads=48, head_dim=256, ffn=73728)


class Block(nnx.Module):
    """x += attention(norm(x)) + mlp(norm(x)), with one norm: the two sublayers' matrix products may run side by side."""

    def __init__(self, config: PaLMConfig):
        self.norm = LayerNorm(config.width, config.eps, bias=False)
        self.attention = MultiHeadAttention(
            config.width,
            config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=False,
            interleaved=True,
        )
        self.mlp = GatedMLP(config.width, config.ffn, config.activation)

    def __call__(self, x: Float[Array, "b t d"], **told: Any) -> tuple[Float[Array, "b t d"], KeysValues]:
        normed = self.norm(x)
        attended, keys_values = self.attention(normed, **told)
        return x + attended + self.mlp(normed), keys_values


class PaLM(Decoder):
    """Parallel blocks, multi-query attention, rotary positions, SwiGLU, a scaled and tied head."""

    def __init__(self, config: PaLMConfig):
        final_norm = LayerNorm(config.width, config.eps, bias=False)
        super().__init__(config, Block(config), final_norm, embedding_width=config.width, embedding_init=normal(1.0))

    def enter(self, embeddings: Float[Array, "b t d"], positions: Int[Array, "b t"]) -> tuple[Array, dict[str, Any]]:
        config = self.config
        angles = rotary_angles(positions, config.head_dim, config.rope_base, config.rope_scaling)
        return embeddings, {"angles": angles}

    def to_head(self, hidden: Float[Array, "*batch d"]) -> tuple[Float[Array, "*batch d"], Float[Array, "d vocab"]]:
        hidden, head = super().to_head(hidden)
        return hidden * self.config.logit_scale, head


def weight_table(config: PaLMConfig) -> Table:
    """Weights in the layout of Hugging Face's CohereForCausalLM, whose blocks are PaLM's.

    Both pair neighbouring features in their rotary positions; weights of an implementation that pairs the halves of a head
    need the rows of their query and key projections re-ordered first.
    """
    layers = range(config.layers)
    block = "model.layers.{layer}."
    projections = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    table = [
        Entry("token_embedding.table", "model.embed_tokens.weight", vocab=config.vocab),
        *norm("layers.norm", f"{block}input_layernorm", bias=False, layers=layers),
    ]
    for ours, theirs in projections.items():
        table += linear(f"layers.{ours}", f"{block}{theirs}", bias=False, layers=layers)
    return [*table, *norm("norm", "model.norm", bias=False), head_entry(config)]
