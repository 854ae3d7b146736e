"""Where the rows of a JSON file stand: found in one pass over its bytes, so that no file is ever parsed as a whole.

Only what separates rows is looked at: brackets and commas outside of strings, and how deep they lie. A block of the file is one
array operation each for quotes, escapes and depth, and a row is parsed when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64

from mmjax.data.files.forms import Unusable
from mmjax.types import UserError

Spans = Int64[np.ndarray, "_ 2"]  # first byte of each row, and the one behind its last

BLOCK = 4 * 2**20  # bytes that are looked at together
BACKSLASH = ord("\\")
QUOTE, OPEN, CLOSE, COMMA = 1, 2, 3, 4
_KINDS = bytes({'"': QUOTE, "[": OPEN, "{": OPEN, "]": CLOSE, "}": CLOSE, ",": COMMA}.get(chr(byte), 0) for byte in range(256))
_KEY = re.compile(rb'"([^"\\]{1,64})"\s*:\s*$')  # of a list, right before it
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LOOK_BACK = 256
_opening = threading.Lock()


class Found(NamedTuple):
    """The rows of a file.

    Args:
      lists: by the key under which a list of rows stands in the file's one object; "" for a file that is itself the list.
      digest: SHA-256 of the file.
    """

    lists: dict[str, Spans]
    digest: bytes


class Edges(NamedTuple):
    """What separates rows: places in the file, and the characters there."""

    places: Int64[np.ndarray, "edges"]
    characters: np.ndarray


def find_rows(path: Path) -> Found:
    """Finds the rows of a file: a JSON list, one JSON object that holds lists, or one JSON object a line.

    Args:
      path: the file; its rows are lines where its name ends in `.jsonl`, or where its first line is an object of its own.

    Returns:
      The rows of each list.

    Raises:
      UserError: it is none of these, or not whole.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        first = file.read(_LOOK_BACK).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        file.seek(0)
        if path.suffix == ".jsonl" or _is_line(file):
            file.seek(0)
            lists = {"": _lines(file, digest)}
        elif first in (b"[", b"{"):
            file.seek(0)
            edges = _edges(path, _blocks(file, digest), level=1 if first == b"[" else 2)
            lists = dict(_lists(file, edges, named=first == b"{"))
        else:
            raise UserError(f"{path} is no JSON file: it begins with {first.decode(errors='replace')!r}, not with [ or {{")
    return Found(lists, digest.digest())


def _is_line(file: BinaryIO) -> bool:
    """Whether the first line is a JSON object, and more lines follow."""
    line = file.readline(BLOCK)
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict) and bool(file.read(1))
    except (ValueError, RecursionError):
        return False


def _blocks(file: BinaryIO, digest: Any) -> Iterator[tuple[int, bytes]]:
    """The blocks of a file and where they begin. None but the last ends in a backslash, for that belongs to what follows it."""
    start, carried = 0, b""
    while read := file.read(BLOCK):
        digest.update(read)
        block = carried + read
        whole = block.rstrip(b"\\")
        carried = block[len(whole) :]
        yield start, whole
        start += len(whole)
    yield start, carried


def _edges(path: Path, blocks: Iterator[tuple[int, bytes]], level: int) -> Edges:
    """What opens, closes and separates the values at a depth.

    Args:
      path: for messages.
      level: how many brackets are open around a row.
    """
    found, depth, inside, ends = [Edges(np.zeros(0, np.int64), np.zeros(0, np.uint8))], 0, 0, 0
    for start, block in blocks:
        characters = np.frombuffer(block, np.uint8)
        kinds = np.frombuffer(bytearray(block.translate(_KINDS)), np.uint8)
        kinds[_escaped(characters)] = 0
        marks = np.flatnonzero(kinds != 0)
        kinds = kinds[marks]
        quotes = inside + np.cumsum(kinds == QUOTE)  # so far: between an odd and an even one lies a string
        inside = int(quotes[-1]) % 2 if quotes.size else inside
        outside = (quotes % 2 == 0) & (kinds != QUOTE)
        marks, kinds = marks[outside], kinds[outside]
        opens, closes = kinds == OPEN, kinds == CLOSE
        after = depth + np.cumsum(opens.astype(np.int64) - closes)
        depth = int(after[-1]) if after.size else depth
        ends += int((closes & (after == 0)).sum())
        if ends > 1 or (after < 0).any():
            raise UserError(f"{path} is no JSON file: after its first value, before byte {start + len(block)}, comes more")
        edges = marks[(after == level) & (opens | (kinds == COMMA)) | (after == level - 1) & closes]
        found.append(Edges(edges + start, characters[edges]))
    if depth or inside or not ends:
        raise UserError(f"{path} is no whole JSON file: it ends inside of a {'text' if inside else 'list'}; download it again")
    return Edges(*map(np.concatenate, zip(*found, strict=True)))


def _escaped(characters: np.ndarray) -> np.ndarray:
    """Places of the characters behind a backslash that is not itself behind one."""
    slashes = np.flatnonzero(characters == BACKSLASH)
    if not slashes.size:
        return slashes
    begins = np.flatnonzero(np.diff(slashes, prepend=-2) > 1)  # of runs of backslashes
    run = np.repeat(slashes[begins], np.diff(begins, append=slashes.size))
    escaped = slashes[(slashes - run) % 2 == 0] + 1
    return escaped[escaped < characters.size]


def _lists(file: BinaryIO, edges: Edges, named: bool) -> Iterator[tuple[str, Spans]]:
    """The lists among what the edges enclose: between the bracket that opens one and the next that closes are only commas."""
    brackets = np.flatnonzero(edges.characters != ord(","))
    for begin, end in zip(brackets, brackets[1:], strict=False):
        if edges.characters[begin] != ord("["):
            continue
        places = edges.places[begin : end + 1]
        spans = np.stack([places[:-1] + 1, places[1:]], axis=1)
        first, last = int(places[0]), int(places[-1])
        if len(spans) == 1 and not _read(file, first + 1, last).strip():
            spans = spans[:0]
        key = _KEY.search(_read(file, max(first - _LOOK_BACK, 0), first)) if named else None
        if key or not named:
            yield key[1].decode(errors="replace") if key else "", spans


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _lines(file: BinaryIO, digest: Any) -> Spans:
    """The lines of a file but for empty ones, which are shorter than any object."""
    found = [np.full(1, -1)]
    start = 0
    while block := file.read(BLOCK):
        digest.update(block)
        found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + start)
        start += len(block)
    places = np.concatenate([*found, [start]])
    spans = np.stack([places[:-1] + 1, places[1:]], axis=1)
    return spans[spans[:, 1] - spans[:, 0] > 1]


class Bytes:
    """A file that is read piece by piece, from any thread; opened at first use in each process."""

    def __init__(self, path: Path):
        self.path, self._descriptor = path, None

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.path, self._descriptor = path, None

    def __del__(self):
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` on and before `stop`."""
        with _opening:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
        return os.pread(self._descriptor, stop - start, start)


def parse(data: bytes) -> dict[str, Any]:
    """A row.

    Raises:
      Unusable: it is no JSON object.
    """
    try:
        row = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
        if _SURROGATE.search(data):  # JSON can spell half of a pair, which no tokenizer reads
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Unusable("no JSON", f"is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise Unusable("another form", f"is a JSON {type(row).__name__}, not an object")
    return row
