"""The Batch: what a step sees. One typed tree of arrays whose shapes never change within a stage.

Letters of the shapes are the vocabulary of the whole project: `b` rows, `t` text positions, `s` source positions,
`n` media slots of a row, `m` queries of media, `u` query-text positions.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped
from numpy import ndarray

if TYPE_CHECKING:
    AnyArray = Any
else:  # on the host, on devices, or (while a step is compiled) shapes alone
    AnyArray = Array | ndarray | jax.ShapeDtypeStruct | jax.stages.ArgInfo


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Text:
    """Token rows for the language model.

    Args:
      tokens: ids to read.
      targets: ids to predict at each position (already shifted).
      loss_weights: weight of each position's loss; 0 where nothing is to be learnt.
      positions: position of the token within its segment, from 0.
      segments: 1, 2, … for the packed segments of a row, 0 for padding. A token sees its own segment only.
    """

    tokens: Int[AnyArray, "b t"]
    targets: Int[AnyArray, "b t"]
    loss_weights: Float[AnyArray, "b t"]
    positions: Int[AnyArray, "b t"]
    segments: Int[AnyArray, "b t"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Media:
    """The media of one modality.

    Args:
      values: raw values, normalised inside the step; images are uint8 [b n height width channels].
      mask: which slots hold a medium.
      ids: equal numbers, equal media, wherever in the global batch; None where nobody asks.
    """

    values: Shaped[AnyArray, "b n ..."]
    mask: Bool[AnyArray, "b n"]
    ids: Int[AnyArray, "b n"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """Texts that a connector reads together with a medium: one medium may serve many.

    Args:
      tokens: ids of the connector's own tokenizer.
      mask: which positions hold a token. A query with no token at all is an empty slot.
      medium: the media slot (0 … n−1) that the query is about; 0 for an empty slot.
    """

    tokens: Int[AnyArray, "b m u"]
    mask: Bool[AnyArray, "b m u"]
    medium: Int[AnyArray, "b m"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Everything that one step reads.

    Args:
      text: rows of the language model; None for objectives that use none (BLIP-2 stage 1).
      media: by modality, "image", "audio", "video". Rows without media have an all-false mask.
      queries: by modality, for connectors that read text.
      feature_index: which row of the concatenated connector outputs [b (m k) d] stands at a position of the source, or of the
        text where there is no source; −1 = a token.
      source: what the encoder of an encoder–decoder language model reads. A segment of the text sees the segment of the same
        number of its row's source; targets and loss weights are not used.
      prior_index: row of the objective's answer-prior table at a text position, 0 = no prior.
      facts: what the metrics say of the data, by name, a number for every row; see `mmjax.data.render`.
    """

    text: Text | None = None
    media: dict[str, Media] = dataclasses.field(default_factory=dict)
    queries: dict[str, Queries] = dataclasses.field(default_factory=dict)
    feature_index: Int[AnyArray, "b t_or_s"] | None = None
    source: Text | None = None
    prior_index: Int[AnyArray, "b t"] | None = None
    facts: dict[str, Int[AnyArray, "b"]] = dataclasses.field(default_factory=dict)
