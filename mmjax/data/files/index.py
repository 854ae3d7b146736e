"""Indices of files: made once, kept in a cache directory, and made again when a file has changed or the index is damaged.

An index is a few arrays of numbers, some thirty bytes a row. It is known by the files that it was made of: their paths, sizes
and times of modification.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from mmjax.types.files import replace_file

Table = dict[str, np.ndarray]

VERSION = 1
_FACTS = "made_of"


def directory() -> Path:
    """Where indices are kept: `$XDG_CACHE_HOME/mmjax/indices`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmjax" / "indices"


def indexed(files: Sequence[Path], kind: str, make: Callable[[], Table]) -> Table:
    """The index of some files: the one that was kept, if it still fits them.

    Args:
      files: what it is made of.
      kind: which index of these files it is.
      make: makes it.

    Returns:
      Its arrays. That the index cannot be kept is a warning: it is then made again each time.
    """
    facts = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    stated = np.frombuffer(json.dumps([VERSION, kind, facts]).encode(), np.uint8)
    name = hashlib.sha256(json.dumps([kind, [fact[0] for fact in facts]]).encode()).hexdigest()
    kept = directory() / f"{name[:32]}.npz"
    table = _load(kept)
    if np.array_equal(table.pop(_FACTS, np.zeros(0)), stated):
        return table
    table = make()
    content = io.BytesIO()
    np.savez(content, **table, **{_FACTS: stated})
    try:
        replace_file(kept, [content.getbuffer()])
    except OSError as error:
        logging.warning("the index of %s cannot be kept in %s (%s): it is made again each time", files[0], kept.parent, error)
    return table


def _load(kept: Path) -> Table:
    """What a file holds; nothing if it is not there or damaged, which the checksums of its arrays tell."""
    try:
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return dict(content)
    except FileNotFoundError:
        return {}
    # NotImplementedError: damage in a member's header reads as a compression or a flag that zipfile does not know.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        logging.warning("the index %s is damaged (%s) and made again", kept, error)
        return {}


def digest(table: Table) -> str:
    """Hex digest of an index."""
    total = hashlib.sha256()
    for name, values in sorted(table.items()):
        total.update(f"{name} {values.dtype.str} {values.shape}".encode())
        total.update(np.ascontiguousarray(values).data)
    return total.hexdigest()
