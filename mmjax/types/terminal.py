"""Where tables are printed."""

from __future__ import annotations

import os
import sys

from rich.console import Console

FILE_COLUMNS = 160  # the widest table needs about 130


def make_console() -> Console:
    """The standard output: as wide as the terminal or as `COLUMNS` asks; in a file or a pipe wide enough to cut nothing off."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if narrow else Console(width=FILE_COLUMNS)
