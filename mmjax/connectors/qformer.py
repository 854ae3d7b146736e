"""The Q-Former (BLIP-2, arXiv 2301.12597): learned queries that read an image, and optionally a text, for a language model.

A BERT whose self-attention runs over [queries ; text], whose query slice cross-attends to the image in every
`frequency`-th layer, and whose queries and text have feed-forward blocks of their own. One image serves many texts: its
keys and values are projected once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.layers import stack
from mmjax.layers.attention import Mask, attend, attention_weights, drop
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.mlp import ACTIVATIONS, MLP
from mmjax.layers.multi_head import KeysValues, LayerCache, MultiHeadAttention, layer_keys
from mmjax.layers.norms import LayerNorm
from mmjax.layers.parameters import Parameters, normal, parameter
from mmjax.layers.parameters import stack as stacked
from mmjax.weights.table import Entry, Table, leading, linear, norm

Direction = Literal["bidirectional", "causal"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    Args:
      width, layers, heads, ffn: of the blocks.
      queries: learned queries, q.
      encoder_width: width of the image features.
      output_width: width of the language model that reads the soft tokens; 0 = none reads them.
      frequency: cross-attention stands in layers 0, frequency, 2·frequency, …; layers must be a multiple of it.
      vocab, max_positions: of the text branch; vocab 0 = no text branch.
      stage1: whether the heads of the contrastive, matching and captioning losses exist.
      projection: width of the contrastive space.
      decoder_start: id of the token with which image-grounded generation begins, [DEC]; −1 = the last of the vocabulary,
        where BLIP-2 has added it to BERT's.
      soft_token_scale: standard deviation of the soft tokens before training. A frozen language model reads them best when they
        are as small as its word embeddings (0.14 in SmolLM2-135M).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    queries: int = 32
    encoder_width: int = 1408
    output_width: int = 2560
    frequency: int = 2
    vocab: int = 0
    max_positions: int = 512
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.1
    stage1: bool = False
    projection: int = 256
    decoder_start: int = -1
    soft_token_scale: float = 1.0

    def __post_init__(self):
        if self.layers % self.frequency:
            raise ValueError(f"layers={self.layers} is not a multiple of frequency={self.frequency}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.stage1 and not self.vocab:
            raise ValueError("stage1=True needs the text branch: set vocab")
        if self.vocab and not -1 <= self.decoder_start < self.vocab:
            raise ValueError(f"decoder_start={self.decoder_start} lies outside of vocab={self.vocab}")


class PostNorm(nnx.Module):
    """norm(residual + dropout(x)): the end of each BERT sub-layer."""

    def __init__(self, config: QFormerConfig):
        self.norm = LayerNorm(config.width, config.eps)
        self.dropout = config.dropout

    def __call__(self, x: Array, residual: Array, key: Array | None) -> Array:
        return self.norm(residual + drop(x, self.dropout, key))


class Layer(nnx.Module):
    """Self-attention over [queries ; text], cross-attention of the queries, one feed-forward for each."""

    def __init__(self, config: QFormerConfig, cross: bool):
        self.attention = MultiHeadAttention(config.width, config.heads)
        self.attention_end = PostNorm(config)
        self.cross = MultiHeadAttention(config.width, config.heads, kv_width=config.encoder_width) if cross else None
        self.cross_end = PostNorm(config) if cross else None
        self.query_mlp = MLP(config.width, config.ffn, config.activation)
        self.query_end = PostNorm(config)
        self.text_mlp = MLP(config.width, config.ffn, config.activation) if config.vocab else None
        self.text_end = PostNorm(config) if config.vocab else None
        self.dropout = config.dropout


class Superblock(nnx.Module):
    """`frequency` layers, the first of them with cross-attention: the unit that repeats."""

    def __init__(self, config: QFormerConfig):
        self.layers = nnx.List([Layer(config, cross=i == 0) for i in range(config.frequency)])


class Stage1Heads(nnx.Module):
    """Projections of the contrastive loss, the matching head and the captioning head (tied to the word embedding)."""

    def __init__(self, config: QFormerConfig):
        self.image_projection = Linear(config.width, config.projection, ("embed", None))
        self.text_projection = Linear(config.width, config.projection, ("embed", None))
        self.matching = Linear(config.width, 2, ("embed", None))
        self.temperature = parameter((), (), lambda key, shape, dtype: jnp.full(shape, 0.07, dtype))
        self.transform = Linear(config.width, config.width)
        self.transform_norm = LayerNorm(config.width, config.eps)
        self.bias = parameter((config.vocab,), ("vocab",))


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a pass gives: of the queries, of the text; the last layer's cross-attention averaged over heads; and what each
    layer reads of [queries ; text], followed by what the last one gives."""

    queries: Float[Array, "b m q d"] | None
    text: Float[Array, "b m u d"] | None
    maps: Float[Array, "b m q p"] | None = None
    depths: Float[Array, "depths b m l d"] | None = None


class QFormer(nnx.Module):
    """Image features, and optionally texts, to soft tokens."""

    def __init__(self, config: QFormerConfig):
        self.config = config
        self.query_tokens = parameter((config.queries, config.width), (None, "embed"), normal(0.02))
        self.norm = LayerNorm(config.width, config.eps)
        self.word_embedding = Embedding(config.vocab, config.width) if config.vocab else None
        self.position_embedding = Embedding(config.max_positions, config.width, (None, "embed")) if config.vocab else None
        self.layers = stacked(Superblock(config), config.layers // config.frequency)
        scale = normal(config.soft_token_scale * config.width**-0.5)  # what is projected has passed a LayerNorm
        self.projection = Linear(config.width, config.output_width, init=scale) if config.output_width else None
        self.heads = Stage1Heads(config) if config.stage1 else None

    @property
    def soft_tokens(self) -> int:
        """Soft tokens per query, k."""
        return self.config.queries

    def __call__(
        self,
        features: Float[Array, "b n p e"] | None = None,
        medium: Int[Array, "b m"] | None = None,
        tokens: Int[Array, "b m u"] | None = None,
        token_mask: Bool[Array, "b m u"] | None = None,
        *,
        query_embeddings: Float[Array, "b m q d"] | None = None,
        direction: Direction = "bidirectional",
        maps: bool = False,
        depths: bool = False,
        key: Array | None = None,
    ) -> Outputs:
        """One pass over [queries ; text]; without features there are no queries, without tokens no text.

        Args:
          features: of the media slots.
          medium: which slot each of the m queries is about; default: one query per slot.
          tokens, token_mask: the texts.
          query_embeddings: what asks in place of the learned queries.
          direction: "bidirectional": all see all; "causal": queries see queries, a text token sees the queries and the
            text up to itself (the mask of image-grounded generation).
          maps: also return attention maps.
          depths: also return what stands between the layers.
          key: of dropout; None = off.
        """
        x, rows = self.embed(features, medium, tokens, key, query_embeddings)
        queries = x.shape[1] - (0 if tokens is None else tokens.shape[-1])
        if features is not None and medium is None:
            medium = jnp.broadcast_to(jnp.arange(features.shape[1]), features.shape[:2])
        mask = _self_mask(
            queries, x.shape[1] - queries, None if token_mask is None else token_mask.reshape(x.shape[0], -1), direction
        )

        def apply(block: Superblock, x: Array, layer_key: Array | None) -> tuple[Array, tuple[Array | None, Array | None]]:
            weights, read = None, []
            for i, layer in enumerate(block.layers):
                read.append(x)
                keys = [None] * 4 if layer_key is None else list(jax.random.split(jax.random.fold_in(layer_key, i), 4))
                x, layer_weights, _ = run_layer(layer, x, queries, mask, features, medium, maps, keys)
                weights = layer_weights if layer_weights is not None else weights
            return x, (weights, jnp.stack(read) if depths else None)

        x, (weights, read) = stack.run(self.layers, apply, x, layer_keys(key, self.config.layers // self.config.frequency))
        between = jnp.concatenate([read.reshape(-1, *x.shape), x[None]]) if depths else None
        x = x.reshape(*rows, *x.shape[1:])
        return Outputs(
            queries=x[:, :, :queries] if queries else None,
            text=x[:, :, queries:] if tokens is not None else None,
            maps=weights[-1].reshape(*rows, *weights.shape[2:]) if maps else None,
            depths=between.reshape(len(between), *rows, *x.shape[2:]) if depths else None,
        )

    def embed(
        self,
        features: Array | None,
        medium: Array | None,
        tokens: Array | None,
        key: Array | None = None,
        query_embeddings: Float[Array, "b m q d"] | None = None,
    ) -> tuple[Float[Array, "r l d"], tuple[int, int]]:
        """[queries ; text] with r = b·m rows, and (b, m). Queries have no positions; the text's begin at 0."""
        rows = tokens.shape[:2] if tokens is not None else (medium if medium is not None else features).shape[:2]
        pieces = []
        if query_embeddings is not None:
            pieces.append(query_embeddings.reshape(-1, *query_embeddings.shape[2:]))
        elif features is not None:
            query_tokens = self.query_tokens[...].astype(features.dtype)
            pieces.append(jnp.broadcast_to(query_tokens, (rows[0] * rows[1], *query_tokens.shape)))
        if tokens is not None:
            if self.word_embedding is None:
                raise ValueError("this Q-Former has no text branch (vocab=0), but it was given tokens")
            words = self.word_embedding(tokens.reshape(-1, tokens.shape[-1]), pieces[0].dtype if pieces else None)
            pieces.append(words + self.position_embedding(jnp.arange(tokens.shape[-1]), words.dtype))
        return drop(self.norm(jnp.concatenate(pieces, axis=1)), self.config.dropout, key), rows

    def connect(
        self,
        features: Float[Array, "b n p e"],
        medium: Int[Array, "b m"] | None = None,
        tokens: Int[Array, "b m u"] | None = None,
        token_mask: Bool[Array, "b m u"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b mk output_width"]:
        """Soft tokens for the language model: k = q for each of the m queries, in order."""
        output = self.projection(self(features, medium, tokens, token_mask, key=key).queries)
        return output.reshape(output.shape[0], -1, output.shape[-1])

    def caption_logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Scores of the next word in image-grounded generation, float32."""
        heads = self.heads
        hidden = heads.transform_norm(ACTIVATIONS[self.config.activation](heads.transform(hidden)))
        return (hidden @ self.word_embedding.table[...].T.astype(hidden.dtype)).astype(jnp.float32) + heads.bias[...]


def run_layer(
    layer: Layer,
    x: Float[Array, "r l d"],
    queries: int = 0,
    mask: Mask | Bool[Array, "r 1 l l"] | None = None,
    features: Array | None = None,
    medium: Array | None = None,
    maps: bool = False,
    keys: Sequence[Any] = (None,) * 4,
    cache: LayerCache | None = None,
) -> tuple[Float[Array, "r l d"], Float[Array, "r q p"] | None, KeysValues]:
    """One layer over [queries ; text]: what it gives, attention maps, and its self-attention's keys and values of x."""
    attended, keys_values = layer.attention(x, mask, cache=cache, dropout=layer.dropout, dropout_key=keys[0])
    x = layer.attention_end(attended, x, keys[1])
    query, text, weights = x[:, :queries], x[:, queries:], None
    if queries:
        if layer.cross is not None:
            crossed, weights = _cross(layer.cross, query, features, medium, maps, layer.dropout, keys[2])
            query = layer.cross_end(crossed, query, keys[2])
        query = layer.query_end(layer.query_mlp(query), query, keys[3])
    if text.shape[1]:
        text = layer.text_end(layer.text_mlp(text), text, keys[3])
    return jnp.concatenate([query, text], axis=1), weights, keys_values


def _cross(
    attention: MultiHeadAttention,
    x: Float[Array, "r q d"],
    features: Float[Array, "b n p e"],
    medium: Int[Array, "b m"],
    maps: bool,
    dropout: float,
    key: Array | None,
) -> tuple[Float[Array, "r q d"], Float[Array, "r q p"] | None]:
    """Queries attend to the features of their medium, whose keys and values are projected once."""
    b, n, p, _ = features.shape
    keys, values = attention.keys_values(features.reshape(b, n * p, -1))
    query = attention.queries(x)
    if n == 1:  # every query of a row is about the same medium: one longer query sequence, no copies of keys and values
        query = query.reshape(b, -1, *query.shape[2:])
    else:
        select = medium[:, :, None, None, None]
        keys, values = (
            jnp.take_along_axis(kv.reshape(b, n, p, *kv.shape[2:]), select, axis=1).reshape(-1, p, *kv.shape[2:])
            for kv in (keys, values)
        )
    output = attend(query, keys, values, dropout=dropout, dropout_key=key)
    weights = attention_weights(query, keys, None).mean((1, 2)).reshape(*x.shape[:2], p) if maps else None
    return attention.merge(output.reshape(*x.shape[:2], *output.shape[2:])), weights


def _self_mask(
    queries: int, text: int, token_mask: Bool[Array, "r u"] | None, direction: Direction
) -> Bool[Array, "r 1 l l"] | None:
    """The self-attention mask over [queries ; text]; None when everything may see everything."""
    if not text or token_mask is None:
        return None
    is_text = jnp.arange(queries + text) >= queries
    visible = jnp.concatenate([jnp.ones((token_mask.shape[0], queries), bool), token_mask], axis=1)
    allowed = jnp.broadcast_to(visible[:, None, :], (*visible.shape, visible.shape[1]))
    if direction == "causal":
        order = jnp.arange(queries + text)
        allowed = allowed & (~is_text[None, :] | (is_text[:, None] & (order[None, :] <= order[:, None])))
    return allowed[:, None]


# Ours <- BERT's, of each layer: the queries' feed-forward block begins as a copy of the text's.
_FROM_BERT = {
    "attention.": "attention.", "attention_end.norm.": "attention_norm.",
    "text_mlp.": "mlp.", "text_end.norm.": "mlp_norm.", "query_mlp.": "mlp.", "query_end.norm.": "mlp_norm.",
}  # fmt: skip


def from_bert(config: QFormerConfig, bert: Parameters) -> Parameters:
    """The parameters that a Q-Former takes over from BERT before stage 1 (arXiv 2301.12597, section 3.1).

    Queries, cross-attention, projection and heads are not among them. Rows of the word embedding that BERT has not ([DEC]) are
    drawn as BERT's were, with deviation 0.02.

    Args:
      config: of the Q-Former, as wide as the BERT.
      bert: parameters of `mmjax.encoders.text.TextEncoder`.
    """
    values = {path: bert[path] for path in ("norm.scale", "norm.bias", "position_embedding.table")}
    words = bert["token_embedding.table"]
    extra = jax.random.normal(jax.random.key(0), (max(config.vocab - len(words), 0), words.shape[1]), words.dtype) * 0.02
    values["word_embedding.table"] = jnp.concatenate([words, extra])
    for path, stacked_values in bert.items():
        for ours, theirs in _FROM_BERT.items():
            if path.startswith(f"layers.{theirs}"):
                rest = path.removeprefix(f"layers.{theirs}")
                for offset in range(config.frequency):
                    values[f"layers.layers.{offset}.{ours}{rest}"] = stacked_values[offset :: config.frequency]
    return values


def weight_table(config: QFormerConfig) -> Table:
    """Weights in the layout of Hugging Face's Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration (where the
    Q-Former reads text) and Blip2ForImageTextRetrieval (where it has the heads of stage 1).

    That last class has no temperature and no captioning head; the others have none of stage 1's heads.
    """
    table = [Entry("query_tokens", "query_tokens", leading(1))]
    if config.stage1:
        table += norm("norm", "qformer.layernorm")
        words = "embeddings"
        table += linear("heads.image_projection", "vision_projection")
        table += linear("heads.text_projection", "text_projection")
        table += linear("heads.matching", "itm_head")
    elif config.vocab:
        words = "qformer.embeddings"
        table += norm("norm", "qformer.embeddings.layernorm")
    else:
        table += norm("norm", "qformer.layernorm")
    if config.output_width:
        table += linear("projection", "language_projection")
    if config.vocab:
        table += [
            Entry("word_embedding.table", f"{words}.word_embeddings.weight"),
            Entry("position_embedding.table", f"{words}.position_embeddings.weight"),
        ]
    for offset in range(config.frequency):
        table += _layer_table(config, offset)
    return table


def _layer_table(config: QFormerConfig, offset: int) -> Table:
    """One layer of the superblock: its slices are their layers offset, offset + frequency, …"""
    layers = range(offset, config.layers, config.frequency)
    ours, theirs = f"layers.layers.{offset}.", "qformer.encoder.layer.{layer}."

    def attention(name: str, end: str, their_name: str) -> Table:
        projections = [
            entry
            for part in ("query", "key", "value")
            for entry in linear(f"{ours}{name}.{part}", f"{theirs}{their_name}.attention.{part}", layers=layers)
        ]
        output = linear(f"{ours}{name}.output", f"{theirs}{their_name}.output.dense", layers=layers)
        return projections + output + norm(f"{ours}{end}.norm", f"{theirs}{their_name}.output.LayerNorm", layers=layers)

    def feed_forward(name: str, end: str, suffix: str) -> Table:
        return [
            *linear(f"{ours}{name}.up", f"{theirs}intermediate{suffix}.dense", layers=layers),
            *linear(f"{ours}{name}.down", f"{theirs}output{suffix}.dense", layers=layers),
            *norm(f"{ours}{end}.norm", f"{theirs}output{suffix}.LayerNorm", layers=layers),
        ]

    return [
        *attention("attention", "attention_end", "attention"),
        *(attention("cross", "cross_end", "crossattention") if offset == 0 else []),
        *feed_forward("query_mlp", "query_end", "_query"),
        *(feed_forward("text_mlp", "text_end", "") if config.vocab else []),
    ]
