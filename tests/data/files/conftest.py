"""Files as people have them: written into a directory of the test, with a cache of indices of its own."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

CONVERSATION = [{"from": "human", "value": "<image>\nWhat colour is it?"}, {"from": "gpt", "value": "Red."}]


def png(seed: int = 0, size: int = 6) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Folder:
    """Writes files of every form below a directory."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def json(self, name: str, content, **options) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content, **options), encoding="utf-8")
        return file

    def lines(self, name: str, rows) -> Path:
        return self.json(name, "".join(json.dumps(row) + "\n" for row in rows))

    def pictures(self, *names: str) -> None:
        for number, name in enumerate(names):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(png(number))

    def tar(self, name: str, members, mode: str = "w") -> Path:
        with tarfile.open(self.path / name, mode) as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return self.path / name

    def parquet(self, name: str, rows, **options) -> Path:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self.path / name, **options)
        return self.path / name


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmjax" / "indices"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return Folder(tmp_path / "files")


@pytest.fixture
def row():
    """Makes a row in LLaVA's form."""
    return lambda number, **changes: {"id": f"n{number}", "image": f"{number}.png", "conversations": CONVERSATION} | changes
