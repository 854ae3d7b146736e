"""Training on files as people have them: a `Source` over a JSON, JSONL, parquet or tar file and the pictures that it names.

Nothing is prepared. Where the rows lie is found once and kept (`mmjax.data.files.index`); a row is read and parsed when it is
asked for, so that neither the start nor the memory depends on how many there are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mmjax.data.files import forms, tar
from mmjax.data.files.forms import Row, RowError, Said, Unusable
from mmjax.data.files.index import Table, digest, indexed
from mmjax.data.files.joins import FORMS, index_json, json_files
from mmjax.data.files.json_rows import Bytes, parse
from mmjax.data.files.pictures import MAX_BYTES, Pictures, matching, open_pictures
from mmjax.types import Example, UserError

PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
TRIED = 10  # rows of a file that are looked at when it is opened
ID_KEYS = ("id", "cocoid", "image_id")
COLUMNS = ("id", "conversations", "caption", "text", "image", "images")  # that are read of a parquet file


@runtime_checkable
class Rows(Protocol):
    """The rows of each example of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sequence[Row]: ...


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A file's examples: a `Source`. It travels to worker processes by pickle.

    Args:
      path: of the file.
      rows: of its examples.
      form: what they say.
      pictures: that they name.
      limit: the first examples only; 0 = all.
      fingerprint: hex digest of the content.
    """

    path: str
    rows: Rows
    form: Callable[[Sequence[Row]], Said]
    pictures: Pictures
    limit: int
    fingerprint: str

    def __len__(self) -> int:
        return min(len(self.rows), self.limit) if self.limit else len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """An example.

        Raises:
          RowError: it cannot be used, with the key of the row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a data set of {len(self)}")
        key = ""
        try:
            rows = self.rows[index]
            key = next((str(rows[0][name]) for name in ID_KEYS if rows[0].get(name) is not None), "")
            name = f"{Path(self.path).stem}/{index}{f'-{key}' if key else ''}"
            return forms.make_example(self.form, rows, name, Path(self.path).name, self.pictures)
        except Unusable as error:
            raise RowError(error.reason, f"{self.path}: row {index}{f' (id {key!r})' if key else ''} {error}") from None

    def check(self) -> None:
        """Raises UserError if none of the first rows has a form that is known."""
        faults = []
        for index in range(min(len(self), TRIED)):
            try:
                forms.make_example(self.form, self.rows[index], "", "", lambda image: forms.Medium("image", b""))
                return
            except Unusable as error:
                faults.append(error)
        if faults and all(fault.reason == faults[0].reason == "another form" for fault in faults):
            raise UserError(f"{self.path} has another form than LLaVA's, COCO's or VQAv2's: row 0 {faults[0]}")


@dataclasses.dataclass(frozen=True)
class JsonRows:
    """Rows of JSON files, as `mmjax.data.files.joins` found them."""

    files: tuple[Bytes, ...]
    spans: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[Row]:
        spans = self.spans[self.starts[index] : self.starts[index + 1]].tolist()
        return [parse(self.files[file].read(start, stop)) for file, start, stop in spans]


@dataclasses.dataclass(frozen=True)
class ParquetRows:
    """Rows of parquet files, with their pictures."""

    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Row]:
        row = self.rows[index]
        return [row | {"image": row["images"]} if row.get("images") else row]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples of tars as webdataset has them: the files that follow one another and have one name up to its first dot.

    Args:
      files: the tars.
      spans: of each member, the tar, its first byte and the one behind its last.
      starts: the first member of each sample.
      names: of the members, joined by line breaks.
      ends: where each name ends.
    """

    files: tuple[Bytes, ...]
    spans: np.ndarray
    starts: np.ndarray
    names: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[Row]:
        pictures, row, caption = [], {}, {}
        for member in range(self.starts[index], self.starts[index + 1]):
            name = self._name(member)
            key, extension = tar.sample_key(name)
            kind = extension.rpartition(".")[2]
            file, start, stop = self.spans[member].tolist()
            if stop - start > MAX_BYTES:
                raise Unusable("file too large", f"has a file of {stop - start:,} bytes, {name}; the limit is {MAX_BYTES:,}")
            data = self.files[file].read(start, stop)
            if kind in PICTURE_EXTENSIONS:
                pictures.append({"bytes": data, "path": name})
            elif kind == "json":
                row = parse(data)
            elif kind == "txt":
                caption = {"caption": data.decode(errors="replace")}
        return [{**row, **caption, "id": key, "image": pictures}]

    def _name(self, member: int) -> str:
        start = self.ends[member - 1] + 1 if member else 0
        return self.names[start : self.ends[member]].tobytes().decode(errors="replace")


def _open_json(path: Path, split: str, images: str) -> tuple[Rows, Callable, Pictures, str]:
    files = json_files(*matching(path))
    table = indexed(files, f"rows {split}", lambda: index_json(files, split))
    rows = JsonRows(tuple(map(Bytes, files)), table["spans"], table["starts"])
    return rows, FORMS[int(table["form"])], open_pictures(images, path), digest(table)


def _open_parquet(path: Path, split: str, images: str) -> tuple[Rows, Callable, Pictures, str]:
    from mmjax.data.files import parquet  # pyarrow takes long to import

    rows = parquet.Rows(matching(path), COLUMNS)
    return ParquetRows(rows), forms.one_row, open_pictures(images, path), rows.fingerprint


def _open_tar(path: Path, split: str, images: str) -> tuple[Rows, Callable, Pictures, str]:
    files = matching(path)
    table = indexed(files, "samples", lambda: _index_tars(files))
    members = (table[name] for name in ("spans", "starts", "names", "ends"))
    return Samples(tuple(map(Bytes, files)), *members), forms.one_row, open_pictures(images, path), digest(table)


def _index_tars(files: Sequence[Path]) -> Table:
    """The members of tars by sample."""
    spans, keys, names = [], [], []
    for number, file in enumerate(files):
        for member in tar.members(file):
            spans.append((number, member.start, member.stop))
            keys.append((number, tar.sample_key(member.name)[0]))
            names.append(member.name.encode(errors="surrogateescape"))
    sizes = [len(list(group)) for _, group in itertools.groupby(keys)]
    return {
        "spans": np.array(spans, np.int64).reshape(-1, 3),
        "starts": np.cumsum([0, *sizes]),
        "names": np.frombuffer(b"\n".join(names), np.uint8),
        "ends": np.cumsum([len(name) + 1 for name in names], dtype=np.int64) - 1,
    }


READERS = {".json": _open_json, ".jsonl": _open_json, ".parquet": _open_parquet, ".tar": _open_tar}


def is_file_source(path: str | Path) -> bool:
    """Whether a path names a file that `open_file` reads, there or not; everything else is a prepared data set."""
    return Path(path).suffix in READERS and not Path(path).is_dir()


def open_file(path: str | Path, split: str = "train", limit: int = 0, images: str = "") -> FileSource:
    """Opens a file to train on.

    Args:
      path: a `.json` (a list in LLaVA's form or of `{image, caption}`, COCO's captions, Karpathy's `dataset_coco.json`, VQAv2's
        questions beside their annotations), `.jsonl`, `.parquet` or `.tar` (webdataset); of the last two also a pattern of
        several, for example `data/train-*.parquet`.
      split: of Karpathy's files, which hold several; any other file is one split.
      limit: the first `limit` examples only; 0 = all.
      images: the folder, tar or parquet of the pictures; "" = beside the file.

    Returns:
      A Source: random access in any order, from any thread, which reads a row when it is asked for.

    Raises:
      UserError: no such file or place of pictures, a damaged file, or one of another form. Later, from an access: RowError.
    """
    path = Path(path)
    rows, form, pictures, fingerprint = READERS[path.suffix](path, split, images)
    source = FileSource(str(path), rows, form, pictures, limit, fingerprint)
    source.check()
    return source
