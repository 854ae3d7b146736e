"""LLaMA (arXiv 2302.13971) and the models that share its trunk; SmolLM2 among them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers import stack
from mmjax.layers.attention import KVCache
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.mlp import GatedMLP
from mmjax.layers.multi_head import MultiHeadAttention, advance, cache_mask, layer_caches
from mmjax.layers.norms import RMSNorm
from mmjax.layers.parameters import stack as stacked
from mmjax.layers.positions import rotary_angles
from mmjax.llms.head import padded_vocab, vocabulary_logits
from mmjax.weights.table import TRANSPOSE, Entry, Table, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a LLaMA model.

    Args:
      head_dim: 0 = width / heads.
      rope_base: base of the rotary frequencies.
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
    eps: float = 1e-6
    activation: str = "silu"
    max_positions: int = 2048
    tied: bool = False

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")

    @classmethod
    def smollm2_135m(cls) -> LlamaConfig:
        """SmolLM2-135M (arXiv 2502.02737)."""
        return cls(
            vocab=49152, width=576, layers=30, heads=9, kv_heads=3, ffn=1536, rope_base=100000.0, eps=1e-5,
            max_positions=8192, tied=True,
        )  # fmt: skip

    @property
    def attention_head_dim(self) -> int:
        return self.head_dim or self.width // self.heads


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), without biases."""

    def __init__(self, config: LlamaConfig):
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = MultiHeadAttention(
            config.width, config.heads, kv_heads=config.kv_heads, head_dim=config.attention_head_dim, bias=False
        )
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = GatedMLP(config.width, config.ffn, config.activation)


class Llama(nnx.Module):
    """Embeddings in, hidden states out; the head is applied by objectives and decoding only."""

    def __init__(self, config: LlamaConfig):
        self.config = config
        vocab = padded_vocab(config.vocab)
        self.token_embedding = Embedding(vocab, config.width)
        self.layers = stacked(Block(config), config.layers)
        self.norm = RMSNorm(config.width, config.eps)
        self.head = None if config.tied else Linear(config.width, vocab, ("embed", "vocab"), bias=False)

    @property
    def width(self) -> int:
        """Width of embeddings and hidden states."""
        return self.config.width

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings."""
        return self.token_embedding(tokens)

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        segments: Int[Array, "b t"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Final hidden states, and the cache with these tokens in it. Arguments as in `mmjax.llms.opt.OPT`."""
        mask, cache = cache_mask(segments, cache)
        angles = rotary_angles(positions, self.config.attention_head_dim, self.config.rope_base)

        def apply(block: Block, x: Array, layer_cache: Any) -> tuple[Array, Any]:
            attended, keys_values = block.attention(block.attention_norm(x), mask, angles=angles, cache=layer_cache)
            x = x + attended
            return x + block.mlp(block.mlp_norm(x)), None if layer_cache is None else keys_values

        x, layers = stack.run(self.layers, apply, embeddings, layer_caches(cache))
        return self.norm(x), advance(cache, layers, embeddings.shape[1])

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Scores of the next token in float32; entries that only pad the vocabulary are −inf."""
        head = self.token_embedding.table[...].T if self.head is None else self.head.kernel[...]
        return vocabulary_logits(hidden, head, self.config.vocab)

    def init_cache(self, rows: int, length: int, dtype: Any = jnp.float32) -> KVCache:
        """An empty cache with room for `length` tokens a row."""
        config = self.config
        return KVCache.empty(config.layers, rows, length, config.kv_heads, config.attention_head_dim, dtype)


def weight_table(config: LlamaConfig) -> Table:
    """Weights in the layout of Hugging Face's LlamaForCausalLM."""
    layers = range(config.layers)
    block = "model.layers.{layer}."
    names = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    head = (
        Entry("token_embedding.table", "lm_head.weight", vocab=config.vocab, duplicate=True)
        if config.tied
        else Entry("head.kernel", "lm_head.weight", TRANSPOSE, vocab=config.vocab)
    )
    return [
        Entry("token_embedding.table", "model.embed_tokens.weight", vocab=config.vocab),
        *norm("layers.attention_norm", f"{block}input_layernorm", bias=False, layers=layers),
        *norm("layers.mlp_norm", f"{block}post_attention_layernorm", bias=False, layers=layers),
        *(
            entry
            for ours, theirs in names.items()
            for entry in linear(f"layers.{ours}", f"{block}{theirs}", bias=False, layers=layers)
        ),
        *norm("norm", "model.norm", bias=False),
        head,
    ]
