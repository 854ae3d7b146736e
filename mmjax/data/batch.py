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
    source_length: int = 0
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
        names = ("rows", "length", "source_length", "media", "queries", "query_length", "soft_tokens", "image_size")
        sizes = {name: getattr(config, name) for name in names}
        return cls(**sizes, pad_id=processor.pad_id, query_pad_id=processor.query_pad_id)


@dataclasses.dataclass(frozen=True)
class Item:
    """One example, ready for a row.

    Args:
      id: the example's.
      segments: its tokenised segments; they share the media.
      images: the media that the segments refer to, by index: uint8 [slots, image_size, image_size, 3], one slot or, in tiles,
        several; None = could not be decoded, and what refers to it is not learnt.
      media_ids: number of each of the images, equal for equal ones; by default of its own.
    """

    id: str
    segments: tuple[TokenisedSegment, ...]
    images: Mapping[int, np.ndarray | None] = dataclasses.field(default_factory=dict)
    media_ids: Mapping[int, int] = dataclasses.field(default_factory=dict)


def slots_of(segments: Iterable[TokenisedSegment]) -> dict[int, int]:
    """The media that some segments refer to, by rising index, each with the media slots that it takes."""
    return dict(sorted({pair for segment in segments for pair in zip(segment.media, segment.slots, strict=True)}))


def kinds(shape: BatchShape) -> tuple[str, ...]:
    """The kinds of room in a row, by their names in BatchShape; where there is a source, its positions are the scarcer."""
    return (*(("source_length",) if shape.source_length else ()), "length", "media", "queries")


def item_size(segments: Sequence[TokenisedSegment], shape: BatchShape) -> tuple[int, ...]:
    """What an example takes of a row of each of its `kinds`: positions of source and text, media slots, query slots."""
    sizes = {
        "source_length": sum(len(segment.source) for segment in segments),
        "length": sum(len(segment.tokens) for segment in segments),
        "media": sum(slots_of(segments).values()),
        "queries": sum(len(segment.media) for segment in segments),
    }
    return tuple(sizes[kind] if getattr(shape, kind) else 0 for kind in kinds(shape))


def capacity(shape: BatchShape) -> tuple[int, ...]:
    """What a row holds of each of its `kinds`."""
    return tuple(getattr(shape, kind) for kind in kinds(shape))


def assemble(
    rows: Sequence[Sequence[Item]], shape: BatchShape, *, prior: Mapping[str, int] = NO_PRIOR, left: bool = False
) -> Batch:
    """Writes items into the rows of a batch; rows that are not given stay empty.

    Soft token j of query slot q stands at row q * k + j of the connector's outputs; without queries, soft token j of media
    slot i at i * k + j, and the newline of pictures in tiles behind them all.

    Args:
      rows: the items of each row.
      shape: static sizes. Sizes of 0 leave the field out of the batch.
      prior: row of the answer-prior table by prompt text.
      left: pad the text on the left, for decoding; a row then holds one item with one segment.

    Returns:
      The batch, as NumPy arrays.

    Raises:
      UserError: an item does not fit its row, or its placeholders differ in number from its soft tokens.
    """
    b, t, s, n, m, u = shape.rows, shape.length, shape.source_length, shape.media, shape.queries, shape.query_length
    text, source = _empty(b, t, shape.pad_id), _empty(b, s, shape.pad_id)
    feature_index = np.full((b, s or t), -1, np.int32)
    prior_index = np.zeros((b, t), np.int32)
    pixels = np.zeros((b, n, shape.image_size, shape.image_size, 3), np.uint8)
    media = Media(pixels, np.zeros((b, n), bool), np.zeros((b, n), np.int32))
    queries = Queries(np.full((b, m, u), shape.query_pad_id, np.int32), np.zeros((b, m, u), bool), np.zeros((b, m), np.int32))

    for row, items in enumerate(rows):
        _check_room(items, shape)
        start, source_start = t - len(items[0].segments[0].tokens) if left else 0, 0
        medium, query, number = 0, 0, 0
        for item in items:
            slots_of_item: dict[int, range] = {}
            for index, count in slots_of(item.segments).items() if n else ():
                slots_of_item[index] = range(medium, medium + count)
                medium += count
                if item.images[index] is not None:
                    taken = slice(medium - count, medium)
                    media.values[row, taken] = item.images[index]
                    media.mask[row, taken] = True
                    media.ids[row, taken] = item.media_ids.get(index, 0)
            for segment in item.segments:
                slots = [slot for index in segment.media for slot in slots_of_item[index]] if n else []
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
                    _write(text, row, start, segment.tokens, number)
                    text.targets[row, start : end - 1] = segment.tokens[1:]
                    if whole:
                        text.loss_weights[row, start : end - 1] = segment.weights[1:]
                    if s:
                        _write(source, row, source_start, segment.source, number)
                    features = _feature_rows(segment, rows_of_features, shape, item.id)
                    begin = source_start if s else start
                    feature_index[row, begin : begin + len(features)] = features
                    if prior and segment.answer > 0:
                        prior_index[row, start + segment.answer - 1] = prior.get(segment.prompt, 0)
                    start, source_start = end, source_start + len(segment.source)
    return Batch(
        text=text if t else None,
        media={"image": media} if n else {},
        queries={"image": queries} if m else {},
        feature_index=feature_index if t and n else None,
        source=source if t and s else None,
        prior_index=prior_index if t and prior else None,
    )


def _empty(rows: int, length: int, pad_id: int) -> Text:
    """Rows that hold nothing yet."""
    shape = (rows, length)
    return Text(
        tokens=np.full(shape, pad_id, np.int32),
        targets=np.full(shape, pad_id, np.int32),
        loss_weights=np.zeros(shape, np.float32),
        positions=np.zeros(shape, np.int32),
        segments=np.zeros(shape, np.int32),
    )


def _write(text: Text, row: int, start: int, tokens: np.ndarray, segment: int) -> None:
    """Writes a segment's tokens into a row."""
    end = start + len(tokens)
    text.tokens[row, start:end] = tokens
    text.positions[row, start:end] = np.arange(len(tokens))
    text.segments[row, start:end] = segment


def _check_room(items: Sequence[Item], shape: BatchShape) -> None:
    """Raises when the items of a row need more than it holds."""
    used = tuple(map(sum, zip(*(item_size(item.segments, shape) for item in items), strict=True)))
    if any(size > room for size, room in zip(used, capacity(shape), strict=False)):
        raise UserError(
            f"row of {[item.id for item in items]} needs ({', '.join(kinds(shape))}) = {used}, there is room for "
            f"{capacity(shape)}"
        )


def _feature_rows(segment: TokenisedSegment, rows: Sequence[int], shape: BatchShape, name: str) -> np.ndarray:
    """The row of the connector's outputs that stands at each position of a segment's source or text, −1 = a token."""
    k = shape.soft_tokens
    if segment.placeholders != len(rows) * k:
        raise UserError(
            f"example {name!r}: {segment.placeholders} placeholders in the text, but {len(rows)} media x {k} soft tokens; "
            "check data.media and data.soft_tokens"
        )
    newline = (shape.queries or shape.media) * k
    table = [row * k + j for row in rows for j in range(k)]
    return np.array([*table, newline, -1], np.int32)[segment.features]  # NEWLINE picks the last but one, −1 the last
