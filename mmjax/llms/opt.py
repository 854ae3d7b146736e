"""OPT (arXiv 2205.01068): the decoder-only language model of BLIP-2."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers import stack
from mmjax.layers.attention import KVCache
from mmjax.layers.linear import Embedding
from mmjax.layers.mlp import MLP
from mmjax.layers.multi_head import MultiHeadAttention, advance, cache_mask, layer_caches
from mmjax.layers.norms import LayerNorm
from mmjax.layers.parameters import stack as stacked
from mmjax.llms.head import padded_vocab, vocabulary_logits
from mmjax.weights.table import Entry, Table, linear, norm

POSITION_OFFSET = 2  # OPT's position table begins with two rows for padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class OPTConfig:
    """Sizes of an OPT model. The head is tied to the token embedding."""

    vocab: int
    width: int
    layers: int
    heads: int
    ffn: int
    max_positions: int = 2048
    activation: str = "relu"
    eps: float = 1e-5

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")

    @classmethod
    def opt_2_7b(cls) -> OPTConfig:
        return cls(vocab=50272, width=2560, layers=32, heads=32, ffn=10240)

    @classmethod
    def opt_6_7b(cls) -> OPTConfig:
        return cls(vocab=50272, width=4096, layers=32, heads=32, ffn=16384)


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with biases everywhere."""

    def __init__(self, config: OPTConfig):
        self.attention_norm = LayerNorm(config.width, config.eps)
        self.attention = MultiHeadAttention(config.width, config.heads)
        self.mlp_norm = LayerNorm(config.width, config.eps)
        self.mlp = MLP(config.width, config.ffn, config.activation)


class OPT(nnx.Module):
    """Embeddings in, hidden states out; the head is applied by objectives and decoding only."""

    def __init__(self, config: OPTConfig):
        self.config = config
        self.token_embedding = Embedding(padded_vocab(config.vocab), config.width)
        self.position_embedding = Embedding(config.max_positions + POSITION_OFFSET, config.width, (None, "embed"))
        self.layers = stacked(Block(config), config.layers)
        self.norm = LayerNorm(config.width, config.eps)

    @property
    def width(self) -> int:
        """Width of embeddings and hidden states."""
        return self.config.width

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings, without positions."""
        return self.token_embedding(tokens)

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        segments: Int[Array, "b t"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Final hidden states, and the cache with these tokens in it.

        Args:
          embeddings: of tokens and soft tokens.
          positions: within each segment, from 0; padding may have any.
          segments: 0 = padding; a token sees its segment up to itself, in the cache too.
        """
        mask, cache = cache_mask(segments, cache)
        x = embeddings + self.position_embedding(positions + POSITION_OFFSET, embeddings.dtype)

        def apply(block: Block, x: Array, layer_cache: Any) -> tuple[Array, Any]:
            attended, keys_values = block.attention(block.attention_norm(x), mask, cache=layer_cache)
            x = x + attended
            return x + block.mlp(block.mlp_norm(x)), None if layer_cache is None else keys_values

        x, layers = stack.run(self.layers, apply, x, layer_caches(cache))
        return self.norm(x), advance(cache, layers, embeddings.shape[1])

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Scores of the next token in float32; entries that only pad the vocabulary are −inf."""
        return vocabulary_logits(hidden, self.token_embedding.table[...].T, self.config.vocab)

    def init_cache(self, rows: int, length: int, dtype: Any = jnp.float32) -> KVCache:
        """An empty cache with room for `length` tokens a row."""
        config = self.config
        return KVCache.empty(config.layers, rows, length, config.heads, config.width // config.heads, dtype)


def weight_table(config: OPTConfig) -> Table:
    """Weights in the layout of Hugging Face's OPTForCausalLM; old files leave out the leading "model."."""
    layers = range(config.layers)
    block = "model.decoder.layers.{layer}."
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    table = [
        Entry("token_embedding.table", "model.decoder.embed_tokens.weight", vocab=config.vocab),
        Entry("token_embedding.table", "lm_head.weight", vocab=config.vocab, duplicate=True),
        Entry("position_embedding.table", "model.decoder.embed_positions.weight"),
        *norm("layers.attention_norm", f"{block}self_attn_layer_norm", layers=layers),
        *(
            entry
            for ours, theirs in names.items()
            for entry in linear(f"layers.attention.{ours}", f"{block}self_attn.{theirs}", layers=layers)
        ),
        *norm("layers.mlp_norm", f"{block}final_layer_norm", layers=layers),
        *linear("layers.mlp.up", f"{block}fc1", layers=layers),
        *linear("layers.mlp.down", f"{block}fc2", layers=layers),
        *norm("norm", "model.decoder.final_layer_norm"),
    ]
    keys = [(entry, str(entry.theirs)) for entry in table]
    return [dataclasses.replace(entry, theirs=(key, key.removeprefix("model."))) for entry, key in keys]
