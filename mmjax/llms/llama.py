"""LLaMA (arXiv 2302.13971) and the models that share its trunk: Vicuna, Mistral, Qwen2, Qwen2.5, Qwen3, SmolLM2.

They differ in their sizes, in which projections have biases, in whether heads are normed before they are rotated, in how
many tokens a layer sees, and in how rotary positions are stretched: all of it fields of one config.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.mlp import GatedMLP, check_activation
from mmjax.layers.multi_head import KeysValues, MultiHeadAttention
from mmjax.layers.norms import RMSNorm
from mmjax.layers.positions import RotaryScaling, rotary_angles
from mmjax.llms.decoder import Decoder, head_entry
from mmjax.weights.table import Entry, Table, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a LLaMA model.

    Args:
      head_dim: 0 = width / heads.
      rope_base: base of the rotary frequencies.
      rope_scaling: how they are stretched; None = not.
      attention_bias: whether queries, keys and values have biases.
      output_bias: whether the attention's output projection has one.
      mlp_bias: whether the three matrices of the MLP have biases.
      head_norm: whether each head's queries and keys are normed before they are rotated.
      window: how many tokens a layer sees, its own included; 0 = all.
      full_layers: layers that see everything all the same.
      tied: whether the head is the token embedding.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    head_dim: int = 0
    rope_base: float = 10000.0
    rope_scaling: RotaryScaling | None = None
    eps: float = 1e-6
    activation: str = "silu"
    max_positions: int = 2048
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    window: int = 0
    full_layers: tuple[int, ...] = ()
    tied: bool = False

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        object.__setattr__(self, "head_dim", self.head_dim or self.width // self.heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions turn pairs of features")
        if beyond := [layer for layer in self.full_layers if not 0 <= layer < self.layers]:
            raise ValueError(f"full_layers names layer {beyond[0]}; there are layers 0 to {self.layers - 1}")
        check_activation(self.activation)

    @property
    def windows(self) -> tuple[int, ...]:
        """How many tokens each layer sees, 0 = all; () = every layer sees all."""
        return tuple(0 if layer in self.full_layers else self.window for layer in range(self.layers)) if self.window else ()

    # LLaMA 1, whose sizes are those of Vicuna v0, v1.1 and v1.3 too (33B is the 30B). Some files of v0 and v1.1 have one row
    # more, for a padding token: vocab=32001.

    @classmethod
    def llama_7b(cls) -> LlamaConfig:
        return cls(vocab=32000, width=4096, layers=32, heads=32, kv_heads=32, ffn=11008)

    @classmethod
    def llama_13b(cls) -> LlamaConfig:
        return cls(vocab=32000, width=5120, layers=40, heads=40, kv_heads=40, ffn=13824)

    @classmethod
    def llama_30b(cls) -> LlamaConfig:
        return cls(vocab=32000, width=6656, layers=60, heads=52, kv_heads=52, ffn=17920)

    @classmethod
    def llama_65b(cls) -> LlamaConfig:
        return cls(vocab=32000, width=8192, layers=80, heads=64, kv_heads=64, ffn=22016)

    vicuna_v0_7b, vicuna_v0_13b = llama_7b, llama_13b
    vicuna_7b, vicuna_13b, vicuna_33b = llama_7b, llama_13b, llama_30b

    # LLaMA 2 (arXiv 2307.09288), whose sizes are those of Vicuna v1.5 too.

    @classmethod
    def llama2_7b(cls) -> LlamaConfig:
        return dataclasses.replace(cls.llama_7b(), eps=1e-5, max_positions=4096)

    @classmethod
    def llama2_13b(cls) -> LlamaConfig:
        return dataclasses.replace(cls.llama_13b(), eps=1e-5, max_positions=4096)

    @classmethod
    def llama2_70b(cls) -> LlamaConfig:
        return cls(
            vocab=32000, width=8192, layers=80, heads=64, kv_heads=8, ffn=28672, eps=1e-5, max_positions=4096
        )  # fmt: skip

    vicuna_v1_5_7b, vicuna_v1_5_13b = llama2_7b, llama2_13b

    # LLaMA 3, 3.1 and 3.2 (arXiv 2407.21783).

    @classmethod
    def _llama3(cls, **sizes: Any) -> LlamaConfig:
        return cls(vocab=128256, kv_heads=8, rope_base=500000.0, eps=1e-5, **{"max_positions": 8192, **sizes})

    @classmethod
    def _llama3_1(cls, factor: float = 8.0, **sizes: Any) -> LlamaConfig:
        scaling = RotaryScaling(type="llama3", factor=factor, original_positions=8192)
        return cls._llama3(max_positions=131072, rope_scaling=scaling, **sizes)

    @classmethod
    def llama3_8b(cls) -> LlamaConfig:
        return cls._llama3(width=4096, layers=32, heads=32, ffn=14336)

    @classmethod
    def llama3_70b(cls) -> LlamaConfig:
        return cls._llama3(width=8192, layers=80, heads=64, ffn=28672)

    @classmethod
    def llama3_1_8b(cls) -> LlamaConfig:
        return cls._llama3_1(width=4096, layers=32, heads=32, ffn=14336)

    @classmethod
    def llama3_1_70b(cls) -> LlamaConfig:
        return cls._llama3_1(width=8192, layers=80, heads=64, ffn=28672)

    @classmethod
    def llama3_1_405b(cls) -> LlamaConfig:
        return cls._llama3_1(width=16384, layers=126, heads=128, ffn=53248)

    @classmethod
    def llama3_2_1b(cls) -> LlamaConfig:
        return cls._llama3_1(factor=32.0, width=2048, layers=16, heads=32, ffn=8192, tied=True)

    @classmethod
    def llama3_2_3b(cls) -> LlamaConfig:
        return cls._llama3_1(factor=32.0, width=3072, layers=28, heads=24, ffn=8192, tied=True)

    # Mistral 7B (arXiv 2310.06825).

    @classmethod
    def mistral_7b_v0_1(cls) -> LlamaConfig:
        return cls(
            vocab=32000, width=4096, layers=32, heads=32, kv_heads=8, ffn=14336, eps=1e-5, max_positions=32768, window=4096
        )  # fmt: skip

    @classmethod
    def mistral_7b_v0_2(cls) -> LlamaConfig:
        return dataclasses.replace(cls.mistral_7b_v0_1(), rope_base=1e6, window=0)

    @classmethod
    def mistral_7b_v0_3(cls) -> LlamaConfig:
        return dataclasses.replace(cls.mistral_7b_v0_2(), vocab=32768)

    # Qwen2 (arXiv 2407.10671) and Qwen2.5 (arXiv 2412.15115), which share their sizes.

    @classmethod
    def _qwen2(cls, width: int, layers: int, heads: int, kv_heads: int, ffn: int, **others: Any) -> LlamaConfig:
        fields = {"vocab": 152064, "rope_base": 1e6, "max_positions": 131072, "attention_bias": True, **others}
        return cls(width=width, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn, **fields)

    @classmethod
    def qwen2_0_5b(cls) -> LlamaConfig:
        return cls._qwen2(896, 24, 14, 2, 4864, vocab=151936, max_positions=32768, tied=True)

    @classmethod
    def qwen2_1_5b(cls) -> LlamaConfig:
        return cls._qwen2(1536, 28, 12, 2, 8960, vocab=151936, tied=True)

    @classmethod
    def qwen2_5_3b(cls) -> LlamaConfig:
        return cls._qwen2(2048, 36, 16, 2, 11008, vocab=151936, max_positions=32768, tied=True)

    @classmethod
    def qwen2_7b(cls) -> LlamaConfig:
        return cls._qwen2(3584, 28, 28, 4, 18944)

    @classmethod
    def qwen2_5_14b(cls) -> LlamaConfig:
        return cls._qwen2(5120, 48, 40, 8, 13824, eps=1e-5)

    @classmethod
    def qwen2_5_32b(cls) -> LlamaConfig:
        return cls._qwen2(5120, 64, 40, 8, 27648, eps=1e-5)

    @classmethod
    def qwen2_72b(cls) -> LlamaConfig:
        return cls._qwen2(8192, 80, 64, 8, 29568, eps=1e-5)

    # Qwen3 (arXiv 2505.09388). Heads are 128 wide whatever the width.

    @classmethod
    def _qwen3(cls, width: int, layers: int, heads: int, ffn: int, **others: Any) -> LlamaConfig:
        fields = {"vocab": 151936, "head_dim": 128, "rope_base": 1e6, "max_positions": 40960, "head_norm": True, **others}
        return cls(width=width, layers=layers, heads=heads, kv_heads=8, ffn=ffn, **fields)

    @classmethod
    def qwen3_0_6b(cls) -> LlamaConfig:
        return cls._qwen3(1024, 28, 16, 3072, tied=True)

    @classmethod
    def qwen3_1_7b(cls) -> LlamaConfig:
        return cls._qwen3(2048, 28, 16, 6144, tied=True)

    @classmethod
    def qwen3_4b(cls) -> LlamaConfig:
        return cls._qwen3(2560, 36, 32, 9728, tied=True)

    @classmethod
    def qwen3_8b(cls) -> LlamaConfig:
        return cls._qwen3(4096, 36, 32, 12288)

    @classmethod
    def qwen3_14b(cls) -> LlamaConfig:
        return cls._qwen3(5120, 40, 40, 17408)

    @classmethod
    def qwen3_32b(cls) -> LlamaConfig:
        return cls._qwen3(5120, 64, 64, 25600)

    # SmolLM2 (arXiv 2502.02737).

    @classmethod
    def _smollm2(cls, **sizes: Any) -> LlamaConfig:
        return cls(vocab=49152, **{"rope_base": 100000.0, "eps": 1e-5, "max_positions": 8192, "tied": True, **sizes})

    @classmethod
    def smollm2_135m(cls) -> LlamaConfig:
        return cls._smollm2(width=576, layers=30, heads=9, kv_heads=3, ffn=1536)

    @classmethod
    def smollm2_360m(cls) -> LlamaConfig:
        return cls._smollm2(width=960, layers=32, heads=15, kv_heads=5, ffn=2560)

    @classmethod
    def smollm2_1_7b(cls) -> LlamaConfig:
        return cls._smollm2(width=2048, layers=24, heads=32, kv_heads=32, ffn=8192, rope_base=130000.0)


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: LlamaConfig):
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = MultiHeadAttention(
            config.width,
            config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            output_bias=config.output_bias,
            head_norm_eps=config.eps if config.head_norm else None,
        )
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = GatedMLP(config.width, config.ffn, config.activation, bias=config.mlp_bias)

    def __call__(self, x: Float[Array, "b t d"], **told: Any) -> tuple[Float[Array, "b t d"], KeysValues]:
        attended, keys_values = self.attention(self.attention_norm(x), **told)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), keys_values


class Llama(Decoder):
    """Rotary positions, RMS norms, a gated MLP."""

    def __init__(self, config: LlamaConfig):
        final_norm = RMSNorm(config.width, config.eps)
        super().__init__(config, Block(config), final_norm, embedding_width=config.width, windows=config.windows)

    def enter(self, embeddings: Float[Array, "b t d"], positions: Int[Array, "b t"]) -> tuple[Array, dict[str, Any]]:
        config = self.config
        angles = rotary_angles(positions, config.head_dim, config.rope_base, config.rope_scaling)
        return embeddings, {"angles": angles}


def weight_table(config: LlamaConfig) -> Table:
    """Weights in the layout of Hugging Face's LlamaForCausalLM, which Mistral's, Qwen2's and Qwen3's classes share."""
    layers = range(config.layers)
    block = "model.layers.{layer}."
    projections = {
        "attention.query": ("self_attn.q_proj", config.attention_bias),
        "attention.key": ("self_attn.k_proj", config.attention_bias),
        "attention.value": ("self_attn.v_proj", config.attention_bias),
        "attention.output": ("self_attn.o_proj", config.output_bias),
        "mlp.gate": ("mlp.gate_proj", config.mlp_bias),
        "mlp.up": ("mlp.up_proj", config.mlp_bias),
        "mlp.down": ("mlp.down_proj", config.mlp_bias),
    }
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.head_norm:
        norms |= {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
    table = [Entry("token_embedding.table", "model.embed_tokens.weight", vocab=config.vocab)]
    for ours, theirs in norms.items():
        table += norm(f"layers.{ours}", f"{block}{theirs}", bias=False, layers=layers)
    for ours, (theirs, bias) in projections.items():
        table += linear(f"layers.{ours}", f"{block}{theirs}", bias=bias, layers=layers)
    return [*table, *norm("norm", "model.norm", bias=False), head_entry(config)]
