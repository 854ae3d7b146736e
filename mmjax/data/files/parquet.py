"""Rows of parquet files in any order: the form in which hubs publish pictures with what is said of them.

A parquet file gives no row without its whole row group, so a group is read for a row and the last few are kept. Groups of a
hundred rows, as hubs write them for pictures, cost some milliseconds.
"""

from __future__ import annotations

import bisect
import collections
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from mmjax.data.files.forms import Unusable
from mmjax.data.files.index import Table, indexed
from mmjax.data.files.pictures import find_key, key_of, sort_keys
from mmjax.types import UserError

KEPT = 2  # row groups in memory
PICTURE_COLUMNS = ("image", "bytes", "picture", "jpg", "png", "data")
NAME_COLUMNS = ("name", "file_name", "filename", "image_name", "key", "path")


class Rows:
    """Some columns of parquet files: random access from any thread, with readers that are opened first in each process.

    Args:
      files: all of the same columns.
      columns: to read; those that the files lack are left out.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str]):
        self._files, self._groups, self._firsts, self._length = list(files), [], [], 0
        footer = hashlib.sha256()
        for number, file in enumerate(files):
            metadata = _open(file).metadata
            footer.update(f"{file.stat().st_size} {metadata.to_dict()}".encode())
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                self._firsts.append(self._length)
                self._length += metadata.row_group(group).num_rows
        self.schema = _open(files[0]).schema_arrow
        self.columns = [column for column in columns if column in self.schema.names]
        self.fingerprint = footer.hexdigest()
        self._reset()

    def _reset(self):
        self._readers: dict[int, pyarrow.parquet.ParquetFile] = {}
        self._kept: collections.OrderedDict[int, pyarrow.Table] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("_readers", "_kept", "_lock")}

    def __setstate__(self, state):
        vars(self).update(state)
        self._reset()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._firsts, index) - 1
        try:
            with self._lock:
                return self._group(group).slice(index - self._firsts[group], 1).to_pylist()[0]
        except (pyarrow.ArrowException, OSError, IndexError) as error:
            raise Unusable("damaged file", f"cannot be read: {error}") from None

    def _group(self, number: int) -> pyarrow.Table:
        if number not in self._kept:
            file, group = self._groups[number]
            if file not in self._readers:
                self._readers[file] = _open(self._files[file])
            self._kept[number] = self._readers[file].read_row_group(group, columns=self.columns, use_threads=False)
        self._kept.move_to_end(number)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[number]


def _open(file: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is no whole parquet file ({error}); download it again") from None


class Pictures:
    """Pictures by name in parquet files: a `Find`."""

    def __init__(self, rows: Rows, table: Table):
        self._rows, self._table = rows, table

    def __call__(self, name: str) -> bytes | None:
        place = find_key(self._table["keys"], name)
        if place is None:
            return None
        value = self._rows[int(self._table["places"][place])][self._rows.columns[0]]
        return value["bytes"] if isinstance(value, dict) else value


def open_pictures(files: Sequence[Path]) -> Pictures:
    """The pictures of parquet files: a column of names beside one of bytes, or one of `{bytes, path}`.

    Raises:
      UserError: the files have no such columns.
    """
    schema = _open(files[0]).schema_arrow
    column = next((column for column in PICTURE_COLUMNS if column in schema.names), None)
    name = next((column for column in NAME_COLUMNS if column in schema.names), None)
    if column and name is None and pyarrow.types.is_struct(schema.field(column).type):
        name = f"{column}.path"
    if column is None or name is None:
        raise UserError(
            f"{files[0]} holds no pictures by name: expected one of the columns {', '.join(PICTURE_COLUMNS)}, and one of "
            f"{', '.join(NAME_COLUMNS)}; it has {', '.join(schema.names)}"
        )

    def make() -> Table:
        keys = [key_of(value) for file in files for value in _values(_open(file), name)]
        return sort_keys(keys, np.arange(len(keys)))

    return Pictures(Rows(files, [column]), indexed(files, f"pictures of {column} by {name}", make))


def _values(file: pyarrow.parquet.ParquetFile, name: str) -> Iterator[str]:
    """The values of a column, or of a field of one, as texts."""
    for batch in file.iter_batches(columns=[name]):
        for value in batch.column(0).to_pylist():
            yield str(value[name.rpartition(".")[2]] if isinstance(value, dict) else value)
