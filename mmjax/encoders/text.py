"""Text encoders: BERT (arXiv 1810.04805), RoBERTa (arXiv 1907.11692), and the text towers of CLIP (arXiv 2103.00020) and SigLIP
(arXiv 2303.15343). One trunk; what they differ in are fields of its config.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.encoders.vit import CLIP_BLOCK
from mmjax.layers.blocks import EncoderBlock, block_table, run_blocks
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.mlp import ACTIVATIONS
from mmjax.layers.norms import LayerNorm
from mmjax.layers.parameters import stack as stacked
from mmjax.weights.table import Entry, Spelling, Table, linear, norm, spellings

LEGACY_END = 2  # the end token that CLIP's first configs name by mistake

Layout = Literal["bert", "clip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes and kind of a text encoder; the defaults are BERT's.

    Args:
      vocab, width, layers, heads, ffn: sizes.
      max_positions: rows of the table of positions.
      padding_id: RoBERTa counts positions of the tokens that are not this one, from padding_id + 1 on; None = from 0, all.
      token_types: kinds of segments that a row may hold (BERT); 0 = none.
      activation: an entry of `mmjax.layers.mlp.ACTIVATIONS`.
      eps: of the norms.
      post_norm: norms stand behind each sub-layer and behind the embeddings; otherwise before each sub-layer and at the end.
      causal: a token sees those before it only.
      pooling: one vector for the text: "tanh" tanh of a linear map of the first token's feature, "first" that feature itself,
        "end" the feature at the end token, "last" that of the last position, padding or not.
      end_id: the end token, of which the first counts. 2 is CLIP's legacy rule: the position of the largest id.
      projection: width of the space that texts share with pictures, into which pooled vectors are projected; 0 = none.
      projection_bias: whether that map has a bias.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    ffn: int
    max_positions: int = 512
    padding_id: int | None = None
    token_types: int = 0
    activation: str = "gelu"
    eps: float = 1e-12
    post_norm: bool = True
    causal: bool = False
    pooling: Literal["tanh", "first", "end", "last"] = "tanh"
    end_id: int = LEGACY_END
    projection: int = 0
    projection_bias: bool = False

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown; there are {', '.join(ACTIVATIONS)}")
        if self.max_length < 1:
            raise ValueError(f"max_positions={self.max_positions} leaves no position after padding_id={self.padding_id}")

    @property
    def max_length(self) -> int:
        """Tokens of the longest text."""
        return self.max_positions - (0 if self.padding_id is None else self.padding_id + 1)

    @classmethod
    def bert_base(cls) -> TextConfig:
        """BERT base, uncased."""
        return cls(vocab=30522, width=768, layers=12, heads=12, ffn=3072, token_types=2)

    @classmethod
    def bert_large(cls) -> TextConfig:
        """BERT large, uncased."""
        return cls(vocab=30522, width=1024, layers=24, heads=16, ffn=4096, token_types=2)

    @classmethod
    def roberta_base(cls) -> TextConfig:
        """RoBERTa base."""
        return _roberta(768, 12, 12, 3072)

    @classmethod
    def roberta_large(cls) -> TextConfig:
        """RoBERTa large."""
        return _roberta(1024, 24, 16, 4096)

    @classmethod
    def clip_b(cls) -> TextConfig:
        """The text tower of OpenAI's CLIP ViT-B/32 and B/16."""
        return _clip(512, 12, 8, 2048, projection=512)

    @classmethod
    def clip_l(cls) -> TextConfig:
        """The text tower of OpenAI's CLIP ViT-L/14."""
        return _clip(768, 12, 12, 3072, projection=768)

    @classmethod
    def clip_h(cls) -> TextConfig:
        """The text tower of OpenCLIP's ViT-H/14 and ViT-g/14."""
        return _clip(1024, 24, 16, 4096, projection=1024, activation="gelu")

    @classmethod
    def clip_bigg(cls) -> TextConfig:
        """The text tower of OpenCLIP's ViT-bigG/14."""
        return _clip(1280, 32, 20, 5120, projection=1280, activation="gelu")

    @classmethod
    def siglip_b(cls) -> TextConfig:
        """The text tower of SigLIP base."""
        return _siglip(768, 12, 12, 3072)

    @classmethod
    def siglip_l(cls) -> TextConfig:
        """The text tower of SigLIP large."""
        return _siglip(1024, 24, 16, 4096)

    @classmethod
    def siglip_so400m(cls) -> TextConfig:
        """The text tower of SigLIP so400m."""
        return _siglip(1152, 27, 16, 4304)


def _roberta(width: int, layers: int, heads: int, ffn: int) -> TextConfig:
    return TextConfig(
        vocab=50265, width=width, layers=layers, heads=heads, ffn=ffn, max_positions=514, padding_id=1, token_types=1, eps=1e-5
    )


def _clip(width: int, layers: int, heads: int, ffn: int, *, projection: int, activation: str = "quick_gelu") -> TextConfig:
    return TextConfig(
        vocab=49408, width=width, layers=layers, heads=heads, ffn=ffn, max_positions=77, activation=activation, eps=1e-5,
        post_norm=False, causal=True, pooling="end", projection=projection,
    )  # fmt: skip


def _siglip(width: int, layers: int, heads: int, ffn: int) -> TextConfig:
    return TextConfig(
        vocab=32000, width=width, layers=layers, heads=heads, ffn=ffn, max_positions=64, activation="gelu_pytorch_tanh",
        eps=1e-6, post_norm=False, pooling="last", projection=width, projection_bias=True,
    )  # fmt: skip


class TextEncoder(nnx.Module):
    """Tokens to one feature per token, or to one vector per text."""

    def __init__(self, config: TextConfig):
        self.config = config
        self.token_embedding = Embedding(config.vocab, config.width, (None, "embed"))
        self.position_embedding = Embedding(config.max_positions, config.width, (None, "embed"))
        self.type_embedding = Embedding(config.token_types, config.width, (None, "embed")) if config.token_types else None
        block = EncoderBlock(config.width, config.heads, config.ffn, config.activation, config.eps, post_norm=config.post_norm)
        self.layers = stacked(block, config.layers)
        self.norm = LayerNorm(config.width, config.eps)
        self.pooler = Linear(config.width, config.width) if config.pooling == "tanh" else None
        self.projection = (
            Linear(config.width, config.projection, ("embed", None), bias=config.projection_bias) if config.projection else None
        )

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.config.width

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        mask: Bool[Array, "b t"] | None = None,
        *,
        types: Int[Array, "b t"] | None = None,
        positions: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Features of every token.

        Args:
          tokens: ids.
          mask: False = padding, which no token sees; None = there is none.
          types: kind of each token's segment; None = all 0.
          positions: None = counted by the config's rule.
        """
        return self.finish(self.encode(tokens, mask, types, positions))

    def encode(
        self,
        tokens: Int[Array, "b t"],
        mask: Bool[Array, "b t"] | None = None,
        types: Int[Array, "b t"] | None = None,
        positions: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """The output of the last block. Arguments as in `__call__`."""
        return run_blocks(self.layers, self.embed(tokens, types, positions), self._visible(tokens, mask))

    def embed(
        self, tokens: Int[Array, "b t"], types: Int[Array, "b t"] | None, positions: Int[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        """What the first block reads: the sum of the embeddings, normalised where norms stand behind."""
        positions = self._positions(tokens) if positions is None else positions
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        if self.type_embedding is not None:
            x = x + self.type_embedding(jnp.zeros_like(tokens) if types is None else types)
        return self.norm(x) if self.config.post_norm else x

    def finish(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The features of the last block's output."""
        return x if self.config.post_norm else self.norm(x)

    def pool(self, features: Float[Array, "b t d"], tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
        """One vector for each text, from its features."""
        match self.config.pooling:
            case "tanh":
                return jnp.tanh(self.pooler(features[:, 0]))
            case "first":
                return features[:, 0]
            case "last":
                return features[:, -1]
        end = self.config.end_id
        index = jnp.argmax(tokens if end == LEGACY_END else tokens == end, axis=1)
        return jnp.take_along_axis(features, index[:, None, None], axis=1)[:, 0]

    def embedding(self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"] | None = None) -> Float[Array, "b d"]:
        """One vector for each text, projected where the tower has a space shared with pictures."""
        pooled = self.pool(self(tokens, mask), tokens)
        return pooled if self.projection is None else self.projection(pooled)

    def _positions(self, tokens: Int[Array, "b t"]) -> Int[Array, "b t"]:
        padding = self.config.padding_id
        if padding is None:
            return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        counted = (tokens != padding).astype(jnp.int32)
        return jnp.cumsum(counted, axis=1) * counted + padding

    def _visible(self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"] | None) -> Bool[Array, "b 1 t t"] | None:
        """Who may see whom. Padding sees what the text sees: where it is pooled (SigLIP), its feature counts."""
        rows, length = tokens.shape
        if mask is None and not self.config.causal:
            return None
        visible = jnp.ones((rows, 1, length, length), bool) if mask is None else mask[:, None, None, :]
        order = jnp.arange(length)
        return (
            visible & (order <= order[:, None]) if self.config.causal else jnp.broadcast_to(visible, (rows, 1, length, length))
        )


_BERT_BLOCK = {
    "attention_norm": "attention.output.LayerNorm", "query": "attention.self.query", "key": "attention.self.key",
    "value": "attention.self.value", "output": "attention.output.dense", "mlp_norm": "output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense",
}  # fmt: skip


def weight_table(config: TextConfig, layout: Layout) -> Table:
    """Weights in the layout of a Hugging Face class, without its prefix.

    Args:
      layout: "bert" BertModel and RobertaModel, "clip" CLIPTextModel and SiglipTextModel. The projection lies outside.
    """
    stem, block, ends = {
        "bert": ("encoder.layer.{layer}.", _BERT_BLOCK, ("word_embeddings", "position_embeddings", "embeddings.LayerNorm")),
        "clip": ("encoder.layers.{layer}.", CLIP_BLOCK, ("token_embedding", "position_embedding", "final_layer_norm")),
    }[layout]
    names: dict[str, Spelling] = {ours: stem + theirs for ours, theirs in block.items()}
    table = [
        Entry("token_embedding.table", f"embeddings.{ends[0]}.weight"),
        Entry("position_embedding.table", f"embeddings.{ends[1]}.weight"),
        *block_table(names, config.layers),
        *norm("norm", ends[2]),
    ]
    if config.token_types:
        table.append(Entry("type_embedding.table", "embeddings.token_type_embeddings.weight"))
    if layout == "bert":
        table = list(map(_with_first_names, table))
    return table + (linear("pooler", "pooler.dense") if config.pooling == "tanh" else [])


def _with_first_names(entry: Entry) -> Entry:
    """The first files of BERT call scale and bias of norms gamma and beta."""
    (key,) = spellings(entry.theirs)
    old = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return entry if old == key else dataclasses.replace(entry, theirs=(key, old))
