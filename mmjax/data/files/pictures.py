"""Where the pictures of a file lie: a folder, tars, or parquet files. A name -> the picture as it is stored."""

from __future__ import annotations

import dataclasses
import hashlib
import mimetypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from mmjax.data.files import tar
from mmjax.data.files.forms import Unusable
from mmjax.data.files.index import Table, indexed
from mmjax.data.files.json_rows import Bytes
from mmjax.types import Medium, UserError

Find = Callable[[str], bytes | None]  # what is stored under a name in a place

MAX_BYTES = 32 * 2**20  # of a picture
# Where a name is looked for; COCO's pictures lie by year, and those of 2014 have longer names.
_COCO = [f"{part}{year}/{{name}}" for year in (2017, 2014) for part in ("train", "val")]
FOLDERS = (
    "{name}", "images/{name}", "image/{name}", *_COCO,
    "train2014/COCO_train2014_{name}", "val2014/COCO_val2014_{name}",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures that rows name.

    Args:
      where: for messages.
      find: looks into the place.
    """

    where: str
    find: Find

    def __call__(self, image: Any) -> Medium:
        """A picture.

        Args:
          image: its name; or where a file has the pictures in its rows, its bytes, or `{"bytes": …, "path": its name}`.

        Raises:
          Unusable: it is not there, too large, or its name leads out of the place.
        """
        stored = image if isinstance(image, Mapping) else {"bytes": image} if isinstance(image, bytes) else {"path": image}
        name = stored.get("path")
        if stored.get("bytes"):
            return _medium(stored["bytes"], name or "")
        if not isinstance(name, str) or not name:
            raise Unusable("no picture", f"names a picture by {name!r}")
        if not inside(name):
            raise Unusable("picture outside of its folder", f"names a picture outside of {self.where}: {name!r}")
        for folder in FOLDERS:
            data = self.find(folder.format(name=name))
            if data is not None:
                return _medium(data, name)
        raise Unusable("missing picture", f"has no picture: {self.where} has no {name}, nor have images/, train2017/, … in it")


def _medium(data: bytes, name: str) -> Medium:
    if len(data) > MAX_BYTES:
        raise _too_large(name, len(data))
    return Medium("image", data, mimetypes.guess_type(name)[0] or "")


def _too_large(name: str, size: int) -> Unusable:
    return Unusable("file too large", f"has a picture of {size:,} bytes, {name}; the limit is {MAX_BYTES:,}")


def inside(name: str) -> bool:
    """Whether a name stays below the directory that it is read from."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


@dataclasses.dataclass(frozen=True)
class Folders:
    """Folders of pictures, of which the first that has a name counts: a `Find`."""

    folders: tuple[Path, ...]

    def __call__(self, name: str) -> bytes | None:
        for file in (folder / name for folder in self.folders):
            try:
                if file.is_file():
                    if (size := file.stat().st_size) > MAX_BYTES:
                        raise _too_large(name, size)
                    return file.read_bytes()
            except OSError as error:
                raise Unusable("missing picture", f"has a picture that cannot be read: {file}: {error.strerror}") from None
        return None


@dataclasses.dataclass(frozen=True)
class Members:
    """Pictures in tars: a `Find`.

    Args:
      files: the tars.
      keys: numbers of the names, sorted.
      spans: of each of them, the tar, its first byte and the one behind its last.
    """

    files: tuple[Bytes, ...]
    keys: UInt64[np.ndarray, "names"]
    spans: Int64[np.ndarray, "names 3"]

    def __call__(self, name: str) -> bytes | None:
        place = find_key(self.keys, name)
        if place is None:
            return None
        file, start, stop = map(int, self.spans[place])
        if stop - start > MAX_BYTES:
            raise _too_large(name, stop - start)
        return self.files[file].read(start, stop)


def open_pictures(images: str, file: Path) -> Pictures:
    """The pictures of a file.

    Args:
      images: a folder, a tar or a parquet file, or a pattern of several of the latter; "" = beside the file.
      file: that names them.

    Raises:
      UserError: there is no such place, or it is none of these.
    """
    if not images:
        annotations = file.parent.name.lower() == "annotations"
        return Pictures(str(file.parent), Folders((file.parent, *([file.parent.parent] if annotations else []))))
    place = Path(images)
    if place.is_dir():
        return Pictures(images, Folders((place,)))
    if place.suffix not in _ARCHIVES:
        there = "has another form" if place.exists() else "does not exist"
        raise UserError(f"images={images} {there}: expected the folder of the pictures, a .tar or a .parquet (unpack others)")
    return Pictures(images, _ARCHIVES[place.suffix](matching(images)))


def matching(path: str | Path) -> list[Path]:
    """The file of that name, or those that a pattern matches, in the order of their names.

    Raises:
      UserError: there is none.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.parent.glob(path.name)) if "*" in path.name else []
    if not files:
        raise UserError(f"{path} does not exist; name the file of the data source (`path`) or of its pictures (`images`)")
    return files


def _tars(files: Sequence[Path]) -> Find:
    def make() -> Table:
        names, spans = [], []
        for number, file in enumerate(files):
            for member in tar.members(file):
                names.append(key_of(member.name))
                spans.append((number, member.start, member.stop))
        return sort_keys(names, np.array(spans, np.int64).reshape(-1, 3))

    table = indexed(files, "pictures", make)
    return Members(tuple(map(Bytes, files)), table["keys"], table["places"])


def _parquets(files: Sequence[Path]) -> Find:
    from mmjax.data.files import parquet  # pyarrow takes long to import

    return parquet.open_pictures(files)


_ARCHIVES: dict[str, Callable[[Sequence[Path]], Find]] = {".tar": _tars, ".parquet": _parquets}


def key_of(name: str) -> int:
    """A number of 64 bits that stands for a name, so that an index need not hold the names."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def sort_keys(keys: Iterable[int], places: np.ndarray) -> Table:
    """An index by name: its sorted keys, and their places. Of equal names the last counts, as in a tar."""
    numbers = np.fromiter(keys, np.uint64)
    order = np.argsort(numbers, kind="stable")
    return {"keys": numbers[order], "places": places[order]}


def find_key(keys: UInt64[np.ndarray, "names"], name: str) -> int | None:
    """Where a name stands among sorted keys; None if it does not."""
    key = np.uint64(key_of(name))
    place = int(np.searchsorted(keys, key, side="right")) - 1
    return place if place >= 0 and keys[place] == key else None
