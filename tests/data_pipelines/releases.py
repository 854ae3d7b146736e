"""Tiny releases in the true layout of their files."""

from __future__ import annotations

import io
import json

from PIL import Image

import data_pipelines
from mmjax.data.records import open_source, split_names


def write(raw, files):
    """Writes a release: texts and JSON values as they are, `None` as a picture whose colour is its own."""
    for number, (name, content) in enumerate(files.items()):
        file = raw / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            stream = io.BytesIO()
            Image.new("RGB", (4, 3), (number, 2 * number, 3 * number)).save(stream, "PNG" if name.endswith("png") else "JPEG")
            file.write_bytes(stream.getvalue())
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    return raw


def prepared(name, tmp_path, files, **options):
    """{split: examples} of a data set made from these files."""
    raw = write(tmp_path / "raw", files)
    data_pipelines.prepare(name, tmp_path / "out", raw, **options)
    out = tmp_path / "out"
    return {split: list(open_source(out, split)) for split in split_names(out)}
