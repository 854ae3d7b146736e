"""BLIP-2 stage 1 (arXiv 2301.12597, section 3.2): the Q-Former learns to see before any language model listens.

Three losses share one encoded image: contrast (ITC, queries and text never see each other), matching (ITM, both see all)
and image-grounded generation (ITG, queries blind to the text, text causal).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from mmjax.connectors.captioner import Captioner
from mmjax.objectives.contrastive import BARRED, contrastive_loss, hard_negatives, matching_loss, normalise, similarities
from mmjax.objectives.language_modelling import next_token_loss
from mmjax.parallel.rows import ROWS, keep
from mmjax.types import Batch

Positives = Literal["pairs", "captions", "images"]
Sums = dict[str, Array]


def stage1_counts(batch: Batch, positives: Positives = "pairs") -> Sums:
    """Anchors of ITC (each direction counts half), pairs of ITM and target tokens of ITG in the batch."""
    tokens, mask = _captions(batch)
    same, valid = belonging(batch, positives)
    has_negative = (_others(same, valid).any(-1) & valid).sum()
    rows = valid.sum()
    counts = {"itc": 2 * rows, "itm": rows + 2 * has_negative, "itg": _targets(tokens, mask)[1].sum()}
    return {term: jnp.float32(count) for term, count in counts.items()}


def stage1_sums(
    system: Any, batch: Batch, key: Array | None, *, smoothing: float, chunk: int, positives: Positives = "pairs"
) -> tuple[Sums, dict[str, tuple[Array, Array]]]:
    """Sums of the three losses, and their accuracies.

    The batch holds one image and one caption a row (n = m = 1). Rows that belong together share their contrastive target and
    are never each other's negatives; rows without a caption take no part.

    Args:
      positives: which rows belong together: see `belonging`.
    """
    qformer = system.connectors["image"]
    tokens, mask = _captions(batch)
    features = system.encode(batch, "image")
    negative_key, dropout_keys = _keys(key)
    same, valid = belonging(batch, positives)
    others = _others(same, valid)
    rows = tokens.shape[0]
    with jax.named_scope("connectors.image"):
        # One pass serves ITC's image side and ITG: under the causal mask the queries do not see the text.
        started = tokens.at[:, 0].set(qformer.config.decoder_start % qformer.config.vocab)
        generated = qformer(features, None, started[:, None], mask[:, None], direction="causal", key=dropout_keys[0])
        text = qformer(None, None, tokens[:, None], mask[:, None], key=dropout_keys[1]).text[:, 0, 0]
        image_to_text, text_to_image = similarities(
            normalise(qformer.heads.image_projection(generated.queries[:, 0])),
            normalise(qformer.heads.text_projection(text)),
            qformer.heads.temperature[...],
        )
        itc = sum(contrastive_loss(scores, same, valid, smoothing) for scores in (image_to_text, text_to_image))

        text_key, image_key = jax.random.split(negative_key)
        other_text = hard_negatives(text_key, image_to_text, ~others)
        other_image = hard_negatives(image_key, text_to_image, ~others)
        order = jnp.arange(rows)
        images, texts = jnp.concatenate([order, other_image, order]), jnp.concatenate([order, order, other_text])
        matched = qformer(
            keep(features[images], *ROWS), None, tokens[texts][:, None], mask[texts][:, None], key=dropout_keys[2]
        )
        labels = (jnp.arange(3 * rows) < rows).astype(jnp.int32)
        has_negative = others.any(-1) & valid
        weights = jnp.concatenate([valid, has_negative, has_negative]).astype(jnp.float32)
        itm, right = matching_loss(qformer.heads.matching(matched.queries[:, 0]).mean(1), labels, weights)

        targets, target_mask = _targets(tokens, mask)
        itg, hits = next_token_loss(
            qformer.caption_logits, generated.text[:, 0], targets, target_mask,
            chunk=chunk, smoothing=smoothing, layout=(*ROWS, None),
        )  # fmt: skip
    first = jnp.take_along_axis(same, jnp.argmax(jnp.where(valid, image_to_text, BARRED), -1)[:, None], axis=-1)[:, 0]
    metrics = {
        "itc_accuracy": ((first & valid).sum(), valid.sum()),
        "itm_accuracy": (right, weights.sum()),
        "itg_accuracy": (hits, target_mask.sum()),
    }
    return {"itc": itc, "itm": itm, "itg": itg}, metrics


def image_features(system: Any, images: UInt8[Array, "b height width 3"]) -> Float[Array, "b q d"]:
    """What the queries read from each image alone."""
    encoder = system.encoders["image"]
    return system.connectors["image"](encoder(encoder.pixels(images))[:, None]).queries[:, 0]


def text_features(system: Any, tokens: Int[Array, "b u"], mask: Bool[Array, "b u"]) -> Float[Array, "b d"]:
    """What stands at the first token, [CLS], of each text alone."""
    return system.connectors["image"](None, None, tokens[:, None], mask[:, None]).text[:, 0, 0]


def pair_features(
    system: Any, images: UInt8[Array, "b height width 3"], tokens: Int[Array, "b u"], mask: Bool[Array, "b u"]
) -> Float[Array, "b q d"]:
    """What the queries read from each image together with its text."""
    encoder = system.encoders["image"]
    features = encoder(encoder.pixels(images))[:, None]
    return system.connectors["image"](features, None, tokens[:, None], mask[:, None]).queries[:, 0]


def embed_images(system: Any, images: UInt8[Array, "b height width 3"]) -> Float[Array, "b q d"]:
    """The contrastive vectors of each image's queries, of length one."""
    return normalise(system.connectors["image"].heads.image_projection(image_features(system, images)))


def embed_texts(system: Any, tokens: Int[Array, "b u"], mask: Bool[Array, "b u"]) -> Float[Array, "b d"]:
    """The contrastive vector of each text, of length one."""
    return normalise(system.connectors["image"].heads.text_projection(text_features(system, tokens, mask)))


class Captioning:
    """A system that writes captions with the Q-Former itself, in the place of a language model.

    Args:
      system: with the heads of stage 1, bound.
    """

    def __init__(self, system: Any):
        self.system, self.encoders = system, system.encoders
        self.llm = Captioner(system.connectors["image"])

    def begin(self, batch: Batch, key: Array | None = None) -> tuple[Float[Array, "b t d"], dict[str, Any]]:
        """The embeddings of the text, and the one picture of each row as the queries have read it."""
        seen = self.llm.encode(self.system.encode(batch, "image")[:, 0])
        return self.llm.embed(batch.text.tokens), {"source": seen}

    def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, "b t d"]:
        """Final hidden states of the text rows."""
        embeddings, told = self.begin(batch, key)
        return self.llm(embeddings, batch.text.positions, batch.text.segments, **told)[0]


def _captions(batch: Batch) -> tuple[Int[Array, "b u"], Bool[Array, "b u"]]:
    queries = batch.queries["image"]
    return jnp.asarray(queries.tokens)[:, 0], jnp.asarray(queries.mask)[:, 0]


def belonging(batch: Batch, positives: Positives) -> tuple[Bool[Array, "b b"], Bool[Array, "b"]]:
    """Which rows belong together, and which hold a caption at all.

    Args:
      positives: "pairs", a caption belongs to its own image only (BLIP-2's pre-training); "captions", also to those with an
        equal caption; "images", to every row of the same image (its fine-tuning for retrieval, where an image has five).
    """
    tokens, mask = _captions(batch)
    if positives == "pairs":
        same = jnp.eye(tokens.shape[0], dtype=bool)
    elif positives == "captions":
        same = (tokens[:, None] == tokens[None]).all(-1)
    else:
        ids = jnp.asarray(batch.media["image"].ids)[:, 0]
        same = ids[:, None] == ids
    return same, mask.any(-1)


def _others(same: Bool[Array, "b b"], valid: Bool[Array, "b"]) -> Bool[Array, "b b"]:
    """Rows that may be drawn as negatives."""
    return ~same & valid


def _targets(tokens: Int[Array, "b u"], mask: Bool[Array, "b u"]) -> tuple[Int[Array, "b u"], Float[Array, "b u"]]:
    """Each position predicts the next token of the caption, [SEP] included."""
    return jnp.roll(tokens, -1, axis=1), jnp.pad(mask[:, 1:], ((0, 0), (0, 1))).astype(jnp.float32)


def _keys(key: Array | None) -> tuple[Array, list[Array | None]]:
    """The key that draws negatives (always there) and three dropout keys (or none)."""
    if key is None:
        return jax.random.key(0), [None] * 3
    negative_key, *dropout_keys = jax.random.split(key, 4)
    return negative_key, list(dropout_keys)
