"""Items -> a Batch of NumPy arrays with static shapes. All index arithmetic of a batch is here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmjax.data.config import DataConfig
from mmjax.types import Batch, Media, Queries, Text, UserError

if TYPE_CHECKING:
    from mmjax.data.processor import Processor, TokenisedSegment

NO_PRIOR: Mapping[str, int] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Static sizes of a batch, named as in DataConfig, and the ids that fill empty positions."""

    rows: int
    length: int
    media: int
    queries: int
    query_length: int
    soft_tokens: int
    image_size: int
    pad_id: int = 0
    query_pad_id: int = 0

    @classmethod
    def of(cls, config: DataConfig, processor: Processor) -> BatchShape:
        """The shape of a stage's batches."""
        names = ("rows", "length", "media", "queries", "query_length", "soft_tokens", "image_size")
        sizes = {name: getattr(config, name) for name in names}
        return cls(**sizes, pad_id=processor.pad_id, query_pad_id=processor.query_pad_id)


@dataclasses.dataclass(frozen=True)
class Item:
    """One example, ready for a row.

    Args:
      id: the example's.
      segments: its tokenised segments; they share the media.
      images: the media that the segments refer to, by index: uint8 [image_size, image_size, 3]; None = could not be decoded,
        and what refers to it is not learnt.
    """

    id: str
    segments: tuple[TokenisedSegment, ...]
    images: Mapping[int, np.ndarray | None] = dataclasses.field(default_factory=dict)


def media_of(segments: Iterable[TokenisedSegment]) -> list[int]:
    """Indices of the media that some segments refer to."""
    return sorted({index for segment in segments for index in segment.media})


def item_size(segments: Sequence[TokenisedSegment], shape: BatchShape) -> tuple[int, int, int]:
    """What an example takes of a row: (text positions, media slots, query slots)."""
    length = sum(len(segment.tokens) for segment in segments) if shape.length else 0
    media = len(media_of(segments)) if shape.media else 0
    return length, media, sum(len(segment.media) for segment in segments) if shape.queries else 0


def capacity(shape: BatchShape) -> tuple[int, int, int]:
    """What a row holds, in the order of `item_size`."""
    return shape.length, shape.media, shape.queries


def assemble(
    rows: Sequence[Sequence[Item]], shape: BatchShape, *, prior: Mapping[str, int] = NO_PRIOR, left: bool = False
) -> Batch:
    """Writes items into the rows of a batch; rows that are not given stay empty.

    Soft token j of query slot q stands at row q * k + j of the connector's outputs; without queries, soft token j of media
    slot i at i * k + j.

    Args:
      rows: the items of each row.
      shape: static sizes. Sizes of 0 leave the field out of the batch.
      prior: row of the answer-prior table by prompt text.
      left: pad on the left, for decoding; a row then holds one item with one segment.

    Returns:
      The batch, as NumPy arrays.

    Raises:
      UserError: an item does not fit its row, or its placeholders differ in number from its soft tokens.
    """
    b, t, n, m, u = shape.rows, shape.length, shape.media, shape.queries, shape.query_length
    text = Text(
        tokens=np.full((b, t), shape.pad_id, np.int32),
        targets=np.full((b, t), shape.pad_id, np.int32),
        loss_weights=np.zeros((b, t), np.float32),
        positions=np.zeros((b, t), np.int32),
        segments=np.zeros((b, t), np.int32),
    )
    feature_index = np.full((b, t), -1, np.int32)
    prior_index = np.zeros((b, t), np.int32)
    media = Media(np.zeros((b, n, shape.image_size, shape.image_size, 3), np.uint8), np.zeros((b, n), bool))
    queries = Queries(np.full((b, m, u), shape.query_pad_id, np.int32), np.zeros((b, m, u), bool), np.zeros((b, m), np.int32))

    for row, items in enumerate(rows):
        _check_room(items, shape)
        start = t - len(items[0].segments[0].tokens) if left else 0
        medium, query, number = 0, 0, 0
        for item in items:
            slot_of = {index: medium + number for number, index in enumerate(item.images)} if n else {}
            for index, slot in slot_of.items():
                if item.images[index] is not None:
                    media.values[row, slot] = item.images[index]
                    media.mask[row, slot] = True
            for segment in item.segments:
                slots = [slot_of[index] for index in segment.media] if n else []
                whole = not n or all(item.images[index] is not None for index in segment.media)
                rows_of_features = slots
                if m:
                    rows_of_features = range(query, query + len(slots))
                    for slot in slots:
                        queries.medium[row, query] = slot
                        if whole:
                            queries.tokens[row, query, : len(segment.query)] = segment.query
                            queries.mask[row, query, : len(segment.query)] = True
                        query += 1
                if t:
                    end = start + len(segment.tokens)
                    number += 1
                    text.tokens[row, start:end] = segment.tokens
                    text.targets[row, start : end - 1] = segment.tokens[1:]
                    if whole:
                        text.loss_weights[row, start : end - 1] = segment.weights[1:]
                    text.positions[row, start:end] = np.arange(len(segment.tokens))
                    text.segments[row, start:end] = number
                    feature_index[row, start:end] = _feature_rows(segment, rows_of_features, shape.soft_tokens, item.id)
                    if prior and segment.answer > 0:
                        prior_index[row, start + segment.answer - 1] = prior.get(segment.prompt, 0)
                    start = end
            medium += len(slot_of)
    return Batch(
        text=text if t else None,
        media={"image": media} if n else {},
        queries={"image": queries} if m else {},
        feature_index=feature_index if t and n else None,
        prior_index=prior_index if t and prior else None,
    )


def _check_room(items: Sequence[Item], shape: BatchShape) -> None:
    """Raises when the items of a row need more than it holds."""
    used = tuple(np.sum([item_size(item.segments, shape) for item in items], axis=0).tolist()) if items else (0, 0, 0)
    if any(size > room for size, room in zip(used, capacity(shape), strict=True)):
        raise UserError(
            f"row of {[item.id for item in items]} needs (length, media, queries) = {used}, there is room for {capacity(shape)}"
        )


def _feature_rows(segment: TokenisedSegment, rows: Sequence[int], soft_tokens: int, name: str) -> np.ndarray:
    """The row of the connector's outputs that stands at each position of a segment, −1 = text."""
    if segment.placeholders != len(rows) * soft_tokens:
        raise UserError(
            f"example {name!r}: {segment.placeholders} placeholders in the text, but {len(rows)} media x {soft_tokens} soft "
            "tokens; check data.media and data.soft_tokens"
        )
    table = [row * soft_tokens + j for row in rows for j in range(soft_tokens)]
    return np.array([*table, -1], np.int32)[segment.features]  # −1 picks the last
