"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def replace_file(path: str | Path, content: str | Iterable[Any]) -> None:
    """Writes a file under a temporary name and renames it: when killed, the old one is left as it was.

    Args:
      path: the file; its folder is made.
      content: text, or pieces of bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in [content.encode()] if isinstance(content, str) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_workdir(directory: str | Path) -> bool:
    """Whether a directory is the workdir of a run: it has that run's resolved config."""
    try:
        return "stages" in json.loads((Path(directory) / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False
