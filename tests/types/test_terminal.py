"""Where tables are printed."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from mmjax.types.terminal import FILE_COLUMNS, make_console


@pytest.mark.parametrize(("columns", "width"), [(None, FILE_COLUMNS), ("90", 90)])
def test_a_file_cuts_nothing_off_unless_asked_to(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    table = Table("number")
    table.add_row("1" * 120)
    make_console().print(table)
    assert make_console().width == width
    assert ("1" * 120 in sys.stdout.getvalue()) == (columns is None)
