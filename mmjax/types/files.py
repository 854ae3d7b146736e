"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name to write under, renamed to `path` at the end: when killed, the old file is left as it was.

    Args:
      path: the file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: str | Path, content: str | Iterable[Any]) -> None:
    """Writes a file, whole or not at all, see `replacing`.

    Args:
      path: the file; its folder is made.
      content: text, or pieces of bytes.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        for piece in [content.encode()] if isinstance(content, str) else content:
            file.write(piece)


def is_workdir(directory: str | Path) -> bool:
    """Whether a directory is the workdir of a run: it has that run's resolved config."""
    try:
        return "stages" in json.loads((Path(directory) / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False
