"""T5 (arXiv 1910.10683), T5 v1.1 and Flan-T5 (arXiv 2210.11416): an encoder reads the source, a decoder writes the text."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers import stack
from mmjax.layers.attention import Mask
from mmjax.layers.cache import KVCache
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.mlp import ACTIVATIONS, MLP, GatedMLP
from mmjax.layers.multi_head import MultiHeadAttention, SourceKeysValues, advance, cache_mask, layer_caches
from mmjax.layers.norms import RMSNorm
from mmjax.layers.parameters import normal
from mmjax.layers.parameters import stack as stacked
from mmjax.layers.relative_positions import RelativePositionBias
from mmjax.llms.head import padded_vocab, vocabulary_logits
from mmjax.parallel.rows import TEXT
from mmjax.types import UserError
from mmjax.weights.table import TRANSPOSE, Entry, Table, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of a T5. The defaults that are no sizes are those of v1.1 and Flan; 1.0 has relu, and head tied and scaled.

    Args:
      layers, decoder_layers: of the two stacks; decoder_layers 0 = the encoder alone.
      head_dim: of the attention, independent of width / heads.
      activation, gated: of the feed-forward blocks.
      buckets, max_distance: of the relative position bias.
      tied: whether the head is the token embedding.
      scaled: whether the decoder's output is multiplied by width^−½ before the head.
    """

    vocab: int = 32128
    width: int
    layers: int
    decoder_layers: int
    heads: int
    head_dim: int = 64
    ffn: int
    activation: str = "gelu_new"
    gated: bool = True
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    tied: bool = False
    scaled: bool = False

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown; there are {', '.join(ACTIVATIONS)}")
        if self.buckets < 4:
            raise ValueError(f"buckets={self.buckets} must be 4 or more")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(f"max_distance={self.max_distance} must be above buckets / 2 = {self.buckets // 2}")

    @classmethod
    def small(cls) -> T5Config:
        """T5 v1.1 and Flan-T5 small, 77 million parameters."""
        return cls(width=512, layers=8, decoder_layers=8, heads=6, ffn=1024)

    @classmethod
    def base(cls) -> T5Config:
        """T5 v1.1 and Flan-T5 base, 248 million parameters."""
        return cls(width=768, layers=12, decoder_layers=12, heads=12, ffn=2048)

    @classmethod
    def large(cls) -> T5Config:
        """T5 v1.1 and Flan-T5 large, 783 million parameters."""
        return cls(width=1024, layers=24, decoder_layers=24, heads=16, ffn=2816)

    @classmethod
    def xl(cls) -> T5Config:
        """T5 v1.1 and Flan-T5 XL, 2.8 billion parameters."""
        return cls(width=2048, layers=24, decoder_layers=24, heads=32, ffn=5120)

    @classmethod
    def xxl(cls) -> T5Config:
        """T5 v1.1 and Flan-T5 XXL, 11.1 billion parameters."""
        return cls(width=4096, layers=24, decoder_layers=24, heads=64, ffn=10240)


class Encoded(NamedTuple):
    """What the encoder made of the source.

    Args:
      hidden: final hidden states.
      segments: of each position, 0 = padding; the decoder's tokens see those of their own segment.
    """

    hidden: Float[Array, "b s d"]
    segments: Int[Array, "b s"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderDecoderCache:
    """What decoding remembers: the decoder's own tokens, and the source as every layer's cross-attention reads it.

    Args:
      own: keys and values of the tokens written so far.
      source_keys, source_values: of the source, projected once.
      source_segments: of the source.
    """

    own: KVCache
    source_keys: Float[Array, "layers b s heads head_dim"]
    source_values: Float[Array, "layers b s heads head_dim"]
    source_segments: Int[Array, "b s"]

    def take(self, rows: Int[Array, "r"]) -> EncoderDecoderCache:
        """These rows, in this order."""
        keys, values = self.source_keys[:, rows], self.source_values[:, rows]
        return EncoderDecoderCache(self.own.take(rows), keys, values, self.source_segments[rows])

    def exchange(self, rows: Int[Array, "b"]) -> EncoderDecoderCache:
        """These rows, in this order, each in the place of one with the same source, which therefore stays."""
        return dataclasses.replace(self, own=self.own.exchange(rows))


class Block(nnx.Module):
    """x += attention(norm(x)); in the decoder x += cross(norm(x), source); x += mlp(norm(x)); without biases."""

    def __init__(self, config: T5Config, *, cross: bool):
        def attention() -> MultiHeadAttention:
            return MultiHeadAttention(config.width, config.heads, head_dim=config.head_dim, bias=False, scale=1.0)

        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = attention()
        self.cross_norm = RMSNorm(config.width, config.eps) if cross else None
        self.cross = attention() if cross else None
        self.mlp_norm = RMSNorm(config.width, config.eps)
        make_mlp = GatedMLP if config.gated else MLP
        self.mlp = make_mlp(config.width, config.ffn, config.activation, bias=False)


class Stack(nnx.Module):
    """The encoder or the decoder: blocks that share one position bias, and a norm at their end."""

    def __init__(self, config: T5Config, layers: int, *, decoder: bool):
        self.position_bias = RelativePositionBias(
            config.width, config.heads, config.buckets, config.max_distance, bidirectional=not decoder
        )
        self.layers = stacked(Block(config, cross=decoder), layers)
        self.norm = RMSNorm(config.width, config.eps)

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        mask: Mask,
        *,
        caches: tuple[Array, Array] | None = None,
        keep: bool = False,
        source: Encoded | None = None,
        source_keys_values: tuple[Array, Array] | None = None,
        source_mask: Mask | None = None,
    ) -> tuple[Float[Array, "b t d"], tuple[Array, Array] | None]:
        """Final hidden states, and with `keep` the keys and values of these tokens in all layers.

        `caches` are the keys and values of the tokens before, in all layers.
        The decoder gets `source_mask`, and either `source`, of which each layer projects keys and values as it needs them, or
        the `source_keys_values` of all layers.
        """
        # T5's residual stream exceeds the range of float16: such weights compute in float32.
        x = embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.bfloat16))
        bias = self.position_bias(x.shape[1], mask.key_segments.shape[1], mask.offset)

        def apply(block: Block, x: Array, layer: tuple[Any, Any]) -> tuple[Array, Any]:
            own, read = layer
            attended, keys_values = block.attention(block.attention_norm(x), mask, position_bias=bias, cache=own)
            x = x + attended
            if block.cross is not None:
                read = block.cross.keys_values(source.hidden) if read is None else read
                x = x + block.cross.cross(block.cross_norm(x), read, source_mask)
            return x + block.mlp(block.mlp_norm(x)), keys_values if keep else None

        x, kept = stack.run(self.layers, apply, x, (caches, source_keys_values), layout=TEXT)
        return self.norm(x), kept


class T5(nnx.Module):
    """Embeddings in, hidden states out; the head is applied by objectives and decoding only."""

    def __init__(self, config: T5Config):
        self.config = config
        self.positions = 0  # of a learned table: there is none
        vocab = padded_vocab(config.vocab)
        self.token_embedding = Embedding(vocab, config.width, init=normal(1.0))
        self.encoder = Stack(config, config.layers, decoder=False)
        self.decoder = Stack(config, config.decoder_layers, decoder=True) if config.decoder_layers else None
        untied = config.decoder_layers and not config.tied
        self.head = Linear(config.width, vocab, ("embed", "vocab"), bias=False) if untied else None

    @property
    def width(self) -> int:
        """Width of embeddings and hidden states."""
        return self.config.width

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings, of source and text alike."""
        return self.token_embedding(tokens)

    def encode(self, embeddings: Float[Array, "b s d"], positions: Int[Array, "b s"], segments: Int[Array, "b s"]) -> Encoded:
        """Reads the source, every token all of its segment.

        Args:
          embeddings: of tokens and soft tokens.
          positions: not needed: T5 knows distances only, and those of slots are those of positions.
          segments: 0 = padding.
        """
        return Encoded(self.encoder(embeddings, Mask(segments, segments))[0], segments)

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        segments: Int[Array, "b t"],
        cache: EncoderDecoderCache | None = None,
        *,
        source: Encoded | None = None,
    ) -> tuple[Float[Array, "b t d"], EncoderDecoderCache | None]:
        """Final hidden states of the decoder, and the cache with these tokens in it.

        Args:
          embeddings: of the text.
          positions: not needed, as in `encode`.
          segments: 0 = padding; a token sees its segment up to itself, in the cache too, and its segment of the source.
          cache: of `init_cache`, which has read the source.
          source: of `encode`; None = it is in the cache.
        """
        decoder = self._writer()
        if cache is None:
            assert source is not None, "without a cache the decoder needs the source"
            mask = Mask(segments, segments, causal=True)
            source_mask = Mask(segments, source.segments)
            return decoder(embeddings, mask, source=source, source_mask=source_mask)[0], None
        mask, own = cache_mask(segments, cache.own)
        hidden, layers = decoder(
            embeddings,
            mask,
            caches=layer_caches(own),
            keep=True,
            source_keys_values=(cache.source_keys, cache.source_values),
            source_mask=Mask(segments, cache.source_segments),
        )
        return hidden, dataclasses.replace(cache, own=advance(own, layers, embeddings.shape[1]))

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Scores of the next token in float32; entries that only pad the vocabulary are −inf."""
        return vocabulary_logits(*self.to_head(hidden), self.config.vocab)

    def to_head(self, hidden: Float[Array, "*batch d"]) -> tuple[Float[Array, "*batch d"], Float[Array, "d vocab"]]:
        """The two factors of the logits, for a vocabulary as it is padded."""
        if self.config.scaled:
            hidden = hidden * self.config.width**-0.5
        return hidden, self.token_embedding.table[...].T if self.head is None else self.head.matrix

    def init_cache(self, rows: int, length: int, dtype: Any = jnp.float32, *, source: Encoded) -> EncoderDecoderCache:
        """A cache with room for `length` tokens a row, in which every layer has projected the source."""
        config = self.config
        own = KVCache.empty(config.decoder_layers, rows, length, config.heads, config.head_dim, source.hidden.dtype)

        def project(block: Block, _: None, __: None) -> tuple[None, SourceKeysValues]:
            return None, block.cross.keys_values(source.hidden)

        _, (keys, values) = stack.run(self._writer().layers, project, None)
        return EncoderDecoderCache(own, keys, values, source.segments)

    def _writer(self) -> Stack:
        if self.decoder is None:
            raise UserError("this T5 is an encoder alone (decoder_layers=0), which neither writes nor scores text")
        return self.decoder


def weight_table(config: T5Config) -> Table:
    """Weights in the layout of Hugging Face's T5ForConditionalGeneration, without a decoder that of T5EncoderModel."""
    shared = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    copies = [*shared[1:], "lm_head.weight"] if config.tied else shared[1:]
    table = [
        Entry("token_embedding.table", shared, vocab=config.vocab),
        *(Entry("token_embedding.table", key, vocab=config.vocab, duplicate=True) for key in copies),
        *_stack_table(config, "encoder", config.layers, ("attention", "mlp")),
    ]
    if config.decoder_layers:
        table += _stack_table(config, "decoder", config.decoder_layers, ("attention", "cross", "mlp"))
    if config.decoder_layers and not config.tied:
        table.append(Entry("head.kernel", "lm_head.weight", TRANSPOSE, vocab=config.vocab))
    return table


def _stack_table(config: T5Config, name: str, depth: int, parts: tuple[str, ...]) -> Table:
    """The entries of one stack, whose blocks number their parts."""
    attention = {"query": "q", "key": "k", "value": "v", "output": "o"}
    feed_forward = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
    theirs = {
        "attention": ("SelfAttention", attention),
        "cross": ("EncDecAttention", attention),
        "mlp": ("DenseReluDense", feed_forward),
    }
    layers = range(depth)
    bias = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table = [Entry(f"{name}.position_bias.values.table", bias), *norm(f"{name}.norm", f"{name}.final_layer_norm", bias=False)]
    for number, part in enumerate(parts):
        block = f"{name}.block.{{layer}}.layer.{number}"
        module, kernels = theirs[part]
        table += norm(f"{name}.layers.{part}_norm", f"{block}.layer_norm", bias=False, layers=layers)
        for ours, key in kernels.items():
            table += linear(f"{name}.layers.{part}.{ours}", f"{block}.{module}.{key}", bias=False, layers=layers)
    return table
