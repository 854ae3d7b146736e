"""Examples at rest: the bytes of one record, and random access to a prepared data set.

A prepared data set is a directory that `tfds.builder_from_directory` reads too: `dataset_info.json`, `features.json` and
ArrayRecord shards whose records are TFDS examples with the one feature `example`, the bytes of `encode_example`.
Reading goes straight to ArrayRecord: no TensorFlow, no tf.data.

One record is: version byte, length of the header (uint32, little-endian), header (JSON), the files of the media one after
the other. The header holds a SHA-256 of every medium.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from tensorflow_datasets.proto import tf_example_pb2

from mmjax.data.files.source import READERS, is_file_source, open_file
from mmjax.types import Example, Medium, Part, Preference, Source, Turn, UserError

FEATURE = "example"
_VERSION = 1
_PREFIX = struct.Struct("<BI")


def _pack_turns(turns: Sequence[Turn]) -> list:
    return [[turn.role, [part.medium if part.text is None else part.text for part in turn.parts]] for turn in turns]


@functools.lru_cache(maxsize=1 << 14)  # questions and answers repeat, and making a frozen dataclass is what decoding costs
def _part(piece: str | int) -> Part:
    return Part(piece) if isinstance(piece, str) else Part(medium=piece)


def _unpack_turns(turns: list) -> tuple[Turn, ...]:
    return tuple([Turn(role, tuple(map(_part, pieces))) for role, pieces in turns])


def encode_example(example: Example) -> bytes:
    """Serialises an example.

    Args:
      example: its media hold encoded files, not decoded values; `meta` is JSON.

    Returns:
      The bytes of the record, equal for equal examples.

    Raises:
      ValueError: naming the example, when it cannot be stored or a medium does not have the digest it states.
    """
    media = []
    for index, medium in enumerate(example.media):
        if isinstance(medium.data, np.ndarray):
            raise ValueError(f"example {example.id!r}: medium {index} is decoded; records store encoded files (PNG, FLAC, …)")
        digest = hashlib.sha256(medium.data).hexdigest()
        if medium.sha256 not in ("", digest):
            raise ValueError(f"example {example.id!r}: medium {index} has SHA-256 {digest}, but states {medium.sha256}")
        media.append([medium.kind, medium.mime, digest, len(medium.data)])
    header: dict[str, Any] = {"id": example.id, "source": example.source, "media": media, "turns": _pack_turns(example.turns)}
    if example.answers:
        header["answers"] = example.answers
    if example.preference is not None:
        header["preference"] = [_pack_turns(example.preference.chosen), _pack_turns(example.preference.rejected)]
    if example.meta:
        header["meta"] = dict(example.meta)
    try:
        text = json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"example {example.id!r}: not storable as JSON: {error}") from None
    return b"".join([_PREFIX.pack(_VERSION, len(text)), text, *(medium.data for medium in example.media)])


def decode_example(record: bytes) -> Example:
    """The example that `encode_example` serialised.

    Raises:
      ValueError: the record is no example of this version, is cut short, or a medium differs from its digest.
    """
    if len(record) < _PREFIX.size:
        raise ValueError(f"a record of {len(record)} bytes is too short to hold an example")
    version, size = _PREFIX.unpack_from(record)
    if version != _VERSION:
        raise ValueError(f"expected a record of version {_VERSION}, got version {version}")
    offset = _PREFIX.size + size
    try:
        header = json.loads(record[_PREFIX.size : offset])
        name, stated = header["id"], header["media"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the header of a record of {len(record)} bytes is damaged: {error}") from None
    if (expected := offset + sum(entry[3] for entry in stated)) != len(record):
        raise ValueError(f"example {name!r}: expected a record of {expected} bytes, got {len(record)}")
    media = []
    for index, (kind, mime, digest, length) in enumerate(stated):
        data = record[offset : offset + length]
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"example {name!r}: medium {index} differs from its SHA-256: the record is damaged")
        media.append(Medium(kind, data, mime, digest))
        offset += length
    preference = header.get("preference")
    return Example(
        id=name,
        source=header["source"],
        media=tuple(media),
        turns=_unpack_turns(header["turns"]),
        answers=tuple(header.get("answers", ())),
        preference=Preference(*map(_unpack_turns, preference)) if preference else None,
        meta=header.get("meta", {}),
    )


class _Shards:
    """Random access to the examples of some shards: a `Source`. Readers are opened at first use in each process."""

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int], limit: int, remedy: str):
        self._paths, self._lengths, self._limit, self._remedy = list(paths), list(lengths), limit, remedy
        self._open()

    def _open(self):
        self._ends = list(itertools.accumulate(self._lengths))
        self._readers: list[Any] = [None] * len(self._paths)
        self._lock = threading.Lock()

    def __getstate__(self):
        return self._paths, self._lengths, self._limit, self._remedy

    def __setstate__(self, state):
        self._paths, self._lengths, self._limit, self._remedy = state
        self._open()

    def __len__(self) -> int:
        total = self._ends[-1] if self._ends else 0
        return min(total, self._limit) if self._limit else total

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a data set of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        position = index - self._ends[shard] + self._lengths[shard]
        try:
            raw = self._reader(shard).read([position])[0]
            features = tf_example_pb2.Example.FromString(raw).features  # pyright: ignore[reportAttributeAccessIssue]
            return decode_example(features.feature[FEATURE].bytes_list.value[0])
        except Exception as error:  # readers raise no common type; whatever it is, this record cannot be had
            raise UserError(
                f"{self._paths[shard]}: record {position} cannot be read ({_reason(error)}); {self._remedy}"
            ) from None

    def _reader(self, shard: int) -> Any:
        if self._readers[shard] is None:
            with self._lock:
                if self._readers[shard] is None:
                    self._readers[shard] = _open_shard(self._paths[shard])
        return self._readers[shard]


def _reason(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open_shard(path: Path) -> Any:
    """An ArrayRecord reader for random access: without read-ahead, so that one record costs one record."""
    return array_record_module.ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768)


class _Info(NamedTuple):
    """What `dataset_info.json` says, and the sentence that tells how to make the data set again."""

    name: str
    splits: dict[str, dict[str, Any]]
    remedy: str


def _read_info(path: Path) -> _Info:
    file = path / "dataset_info.json"
    command = f"python -m launch.prepare --dataset={{}} --out={path}"
    if not file.is_file():
        raise UserError(
            f"{path} is no prepared data set (it has no {file.name}); make it with: {command.format(path.name)}; or to train "
            f"on a file of your own as it is, name the file ({', '.join(READERS)})"
        )
    try:
        info = json.loads(file.read_text())
        remedy = f"make it again with: {command.format(info['name'])}"
        return _Info(info["name"], {split["name"]: split for split in info["splits"]}, remedy)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error!r}); make it again with: {command.format(path.name)}") from None


def _shards(path: Path, split: str) -> tuple[list[Path], list[int], str]:
    """Paths of a split's shards, the record counts that `dataset_info.json` states, and the remedy."""
    info = _read_info(path)
    if split not in info.splits:
        there = ", ".join(info.splits) or "none"
        raise UserError(f"{path} has no split {split!r}; it has {there}: set `split` of the data source to one of them")
    stated = info.splits[split]
    lengths = [int(length) for length in stated["shardLengths"]]
    fields = {"DATASET": info.name, "SPLIT": split, "FILEFORMAT": "array_record"}
    names = [f"{index:05d}-of-{len(lengths):05d}" for index in range(len(lengths))]
    return [path / stated["filepathTemplate"].format(**fields, SHARD_X_OF_Y=name) for name in names], lengths, info.remedy


def split_names(path: str | Path) -> tuple[str, ...]:
    """Names of the splits of a prepared data set.

    Raises:
      UserError: `path` is no prepared data set.
    """
    return tuple(_read_info(Path(path)).splits)


def open_source(path: str | Path, split: str, limit: int = 0, images: str = "") -> Source:
    """Opens a split of a prepared data set, or a file that is read as it is (`mmjax.data.files.source`).

    Every shard is opened once and its length compared with `dataset_info.json`, so that a damaged data set is found here
    and not in the middle of a run.

    Args:
      path: directory of the data set, as `launch.prepare` wrote it; or a `.json`, `.jsonl`, `.parquet` or `.tar`.
      split: its split.
      limit: the first `limit` examples only; 0 = all.
      images: of a file, where its pictures are: a folder, tar or parquet; "" = beside it.

    Returns:
      A Source: random access in any order, from any thread; it travels to worker processes by pickle.

    Raises:
      UserError: no such data set or split; a shard is missing, cut short or damaged. Later, from an access: a damaged record.
    """
    if is_file_source(path):
        return open_file(path, split, limit, images)
    if images:
        raise UserError(f"images={images} is for files; {path} names a prepared data set, which holds its pictures")
    paths, lengths, remedy = _shards(Path(path), split)
    for shard, length in zip(paths, lengths, strict=True):
        if not shard.is_file():
            raise UserError(f"{shard} is missing; {remedy}")
        try:
            found = _open_shard(shard).num_records()
        except Exception as error:  # the reader raises no common type
            raise UserError(f"{shard} is damaged ({_reason(error)}); {remedy}") from None
        if found != length:
            raise UserError(f"{shard} holds {found} records instead of {length}; {remedy}")
    return _Shards(paths, lengths, limit, remedy)


def fingerprint(path: str | Path, split: str) -> str:
    """Hex digest of a split's shards: their names, sizes and record counts; of a file, its own. It tells data sets apart."""
    if is_file_source(path):
        return open_file(path, split).fingerprint
    paths, lengths, remedy = _shards(Path(path), split)
    try:
        facts = [[shard.name, shard.stat().st_size, length] for shard, length in zip(paths, lengths, strict=True)]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; {remedy}") from None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
