"""Pictures of the web with their texts, by the million: CC3M, CC12M, SBU, LAION-400M, and BLIP's bootstrapped captions.

Their owners publish addresses. `img2dataset --output_format=webdataset` downloads them, and its folder of tars is the release
directory: a sample is the files KEY.jpg, KEY.txt (the caption) and KEY.json (its `url`, and `caption` if there is no text) that
follow one another. Instead of tars there may be JSON lists of `{image, caption}`, as LAVIS has them, beside their pictures.

Nothing in a tar is trusted: it is read as a stream and never unpacked, only plain files up to a size count, and every picture
is decoded once. What cannot be used is counted against `--skips` and listed.
"""

from __future__ import annotations

import itertools
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipelines import builder, release
from mmjax.data.files.pictures import inside
from mmjax.data.files.tar import Damage, sample_key, walk
from mmjax.data.media.image import ImageError, decode_image
from mmjax.types import Example, Medium, UserError

SLICE = 32 * 2**20  # bytes of a tar that are read at once
MAX_BYTES = 32 * 2**20  # of a member
MIMES = {"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

_BOOTSTRAPPED = "https://github.com/salesforce/BLIP", "pictures: their owners'"
_CONCEPTUAL = "any use, credit asked; pictures: their owners'"
SETS = {
    "cc3m": ("Conceptual Captions: 3.3 million.", "https://ai.google.com/research/ConceptualCaptions", _CONCEPTUAL),
    "cc12m": ("Conceptual 12M.", "https://github.com/google-research-datasets/conceptual-12m", _CONCEPTUAL),
    "sbu": ("SBU: a million photographs of Flickr.", "https://www.cs.rice.edu/~vo9/sbucaptions", "their owners' Flickr terms"),
    "laion400m": ("LAION-400M.", "https://laion.ai/blog/laion-400-open-dataset", "CC-BY-4.0; pictures: their owners'"),
    "laion_capfilt": ("LAION's 115 million with BLIP's captions.", *_BOOTSTRAPPED),
    "cc_sbu_capfilt": ("Conceptual Captions and SBU with BLIP's captions.", *_BOOTSTRAPPED),
    "web_capfilt": ("Web pictures with BLIP's captions.", *_BOOTSTRAPPED),
}


class Slice(NamedTuple):
    """The samples of a tar that begin from byte `start` on and before `stop`."""

    name: str
    source: str
    file: str
    start: int
    stop: int


def unpack(item: Slice | release.Picture) -> Iterator[Example | builder.Skip]:
    """The only step: the samples of a slice, or a picture of a list."""
    return samples(item) if isinstance(item, Slice) else release.describe(item)


def samples(part: Slice) -> Iterator[Example | builder.Skip]:
    """The samples of a slice; the slice in which a tar is damaged reports it."""
    try:
        tar = tarfile.open(part.file, "r:")
    except (tarfile.TarError, OSError) as error:
        if part.start == 0:
            yield builder.Skip(part.file, f"is no tar that can be read: {error}")
        return
    with tar:
        for key, group in itertools.groupby(walk(tar), _key):
            first, *rest = group
            if first.offset >= part.stop:
                return
            if first.offset < part.start:
                continue
            if isinstance(first, Damage):
                yield builder.Skip(part.file, f"is damaged at byte {first.offset} ({first.reason}), and what follows is lost")
            else:
                yield _sample(tar, f"{part.name}/train/{Path(part.file).stem}/{key}", [first, *rest], part.source)


def _key(member: tarfile.TarInfo | Damage) -> str:
    """The key of the sample to which a file belongs."""
    return "" if isinstance(member, Damage) else sample_key(member.name)[0]


def _sample(tar: tarfile.TarFile, name: str, members: list[tarfile.TarInfo], source: str) -> Example | builder.Skip:
    files = {sample_key(member.name)[1]: member for member in members}
    extension = next((extension for extension in MIMES if extension in files), None)
    if extension is None:
        return builder.Skip(name, f"has no picture: its files are {', '.join(sorted(files))}")
    for member in members:
        if member.size > MAX_BYTES:
            return builder.Skip(name, f"has a file of {member.size:,} bytes; the limit is {MAX_BYTES:,}")
    try:
        facts = json.loads(_read(tar, files["json"])) if "json" in files else {}
        url, caption = facts.get("url"), facts.get("caption")
        caption = _read(tar, files["txt"]).decode() if "txt" in files else caption
        data = _read(tar, files[extension])
        decode_image(data, name="its picture")
    except ImageError as error:
        return builder.Skip(name, f"cannot be used: {error}")
    except (tarfile.TarError, ValueError, AttributeError, RecursionError) as error:
        return builder.Skip(name, f"is damaged: {error}")
    if not isinstance(caption, str) or not caption.strip():
        return builder.Skip(name, "has no caption")
    meta = {"url": url} if isinstance(url, str) else {}
    return Example(name, source, (Medium("image", data, MIMES[extension]),), answers=(caption.strip(),), meta=meta)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a file
    return stream.read()


def slices(found: release.Found, file: Path) -> list[Slice]:
    """The slices of a tar; the last one has no end, for a tar that is cut short ends beyond itself."""
    starts = range(0, max(file.stat().st_size, 1), SLICE)
    stops = (*starts[1:], sys.maxsize)
    return [Slice(found.name, found.source, str(file), *span) for span in zip(starts, stops, strict=True)]


def pictures(found: release.Found, file: Path) -> list[release.Picture]:
    """The pictures of a list with their captions.

    Raises:
      UserError: it lists addresses, or names files outside of the release.
    """
    made = []
    rows = release.read_rows(file)
    with release.reading(file):
        for place, row in enumerate(rows):
            if "image" not in row and "url" in row:
                raise UserError(
                    f"{file} lists addresses; download them with img2dataset --url_list={file.name} --input_format=json "
                    "--url_col=url --caption_col=caption --output_format=webdataset --output_folder=DIR; then --raw=DIR"
                )
            if not inside(row["image"]):
                raise UserError(f"{file} names a picture outside of its directory: {row['image']!r}")
            texts = (row["caption"],) if isinstance(row["caption"], str) else tuple(row["caption"])
            made.append(
                release.Picture(
                    id=f"{found.name}/train/{file.stem}/{place}",
                    source=found.source,
                    file=str(found.raw / row["image"]),
                    captions=texts,
                    meta={"image_id": row["image"]},
                )
            )
    return made


def items(found: release.Found) -> dict[str, list[Slice] | list[release.Picture]]:
    """The slices of all tars, or where there are none, the pictures of all lists."""
    read = slices if "tars" in found.files else pictures
    files = found.files.get("tars") or found.files["lists"]
    return {"train": [item for file in files for item in read(found, file)]}  # pyright: ignore[reportReturnType]


DATASETS = {
    name: release.Release(
        name=name,
        about=about,
        homepage=homepage,
        license=licence,
        where="tars that img2dataset --output_format=webdataset downloads",
        files={"tars": ("*.tar",), "lists": ("*.json",)},
        items=items,
        steps=(unpack,),
        chunk=1,
    ).build
    for name, (about, homepage, licence) in SETS.items()
}
