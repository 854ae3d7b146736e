"""Safetensors files: read lazily as memory-mapped NumPy views in the file's own dtype, written tensor by tensor.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}} and the tensors' bytes.
The header comes from strangers, so nothing in it is believed before it is checked against the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.types import UserError
from mmjax.types.files import replace_file

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
SHARD_BYTES = 5_000_000_000


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or more files by name; a value is a read-only view that is paged in when it is touched."""

    def __init__(self, source: Path, views: Mapping[str, np.ndarray]):
        self.source = source
        self._views = views

    def __getitem__(self, key: str) -> np.ndarray:
        return self._views[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to be written: its shape and dtype are known before its values are fetched."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


def open_directory(
    directory: str | Path,
    stem: str = "model",
    *,
    suffix: str = ".safetensors",
    read: Callable[[Path], dict[str, np.ndarray]] | None = None,
) -> Tensors:
    """The weights of a directory in Hugging Face layout.

    Args:
      directory: holds `<stem>.safetensors`, or `<stem>.safetensors.index.json` that names the files of each tensor. Other
        safetensors files that lie about are not looked at.
      stem: name of the weight file.
      suffix, read: the ending of another kind of weight file, and its reader in place of `read_file`.

    Raises:
      UserError: naming the file that is missing, damaged or of a kind that is not read.
    """
    directory, read = Path(directory), read or read_file
    single, index = directory / f"{stem}{suffix}", directory / f"{stem}{suffix}.index.json"
    if single.is_file():
        return Tensors(directory, read(single))
    if index.is_file():
        return Tensors(directory, _read_shards(index, read))
    if suffix != ".bin" and any(directory.glob("*.bin")):
        raise UserError(
            f"{directory} holds pickled weights (.bin) only, which are read on request; convert them once with: "
            f"python -m launch.convert --pickle --source={directory} --target=NEW_DIRECTORY"
        )
    raise UserError(f"{directory} holds neither {single.name} nor {index.name}")


def _read_shards(index: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    try:
        weight_map = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is damaged: {error!r}") from None
    shards: dict[str, dict[str, np.ndarray]] = {}
    views = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {key!r} is said to be in {name!r}; expected the name of a file beside the index")
        if name not in shards:
            shards[name] = read(index.parent / name)
        if key not in shards[name]:
            raise UserError(f"{index.parent / name} lacks {key!r}, which {index.name} says it holds")
        views[key] = shards[name][key]
    return views


def read_file(path: str | Path) -> dict[str, np.ndarray]:
    """Memory-maps one file.

    Args:
      path: of a safetensors file.

    Returns:
      A read-only view of each tensor, by name.

    Raises:
      UserError: the file is missing, truncated or oversized, or its header is not well-formed or lies.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    size = path.stat().st_size
    if size < 8:
        raise UserError(f"{path} is no safetensors file: it has {size} bytes")
    data = np.memmap(path, np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise UserError(f"{path} is truncated or no safetensors file: a header of {length} bytes in a file of {size}")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        entries = {key: _entry(value) for key, value in header.items() if key != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the header is damaged: {error!r}") from None
    body = data[8 + length :]
    _check_layout(path, entries, len(body))
    return {key: body[begin:end].view(dtype).reshape(shape) for key, (dtype, shape, begin, end) in entries.items()}


def _entry(value: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    shape, (begin, end) = tuple(value["shape"]), value["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape {shape}, offsets {begin}, {end}")
    return DTYPES[value["dtype"]], shape, begin, end


def _check_layout(path: Path, entries: Mapping[str, tuple[np.dtype, tuple[int, ...], int, int]], size: int) -> None:
    """Every tensor has the bytes that its shape needs, and together they fill the file without gap or overlap."""
    filled = 0
    for key, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != filled:
            raise UserError(f"{path}: the bytes of {key!r} begin at {begin}, those before it end at {filled}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise UserError(f"{path}: {key!r} has {end - begin} bytes, its shape {shape} and dtype {dtype} do not")
        filled = end
    if filled != size:
        what = "truncated" if filled > size else "oversized"
        raise UserError(f"{path} is {what}: expected {filled} bytes of tensors, got {size}")


def save_directory(
    directory: str | Path, tensors: Mapping[str, Tensor], *, stem: str = "model", shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Writes weights in Hugging Face layout; a tensor is fetched when its turn comes and then forgotten.

    Args:
      directory: made where it does not exist.
      tensors: by name.
      stem: name of the weight file.
      shard_bytes: above this size the tensors are spread over several files with an index.

    Returns:
      The files written. Each appears under its name only when it is whole.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        return [save_file(directory / f"{stem}.safetensors", tensors)]
    files, weight_map = [], {}
    for number, keys in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append(save_file(directory / name, {key: tensors[key] for key in keys}))
        weight_map |= dict.fromkeys(keys, name)
    total = sum(_bytes(tensor) for tensor in tensors.values())
    index = directory / f"{stem}.safetensors.index.json"
    replace_file(index, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
    return [*files, index]


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _shards(tensors: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
    keys: list[str] = []
    size = 0
    for key, tensor in tensors.items():
        if keys and size + _bytes(tensor) > limit:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += _bytes(tensor)
    yield keys


def save_file(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes one file.

    Args:
      path: of the file.
      tensors: by name, in the order in which they are to lie in the file.

    Returns:
      The path.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + _bytes(tensor)
        header[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    values = (_value(key, tensor) for key, tensor in tensors.items())
    replace_file(path, (piece for pieces in ([len(text).to_bytes(8, "little"), text], values) for piece in pieces))
    return path


def _value(key: str, tensor: Tensor) -> memoryview:
    value = tensor.load()
    if value.shape != tensor.shape or value.dtype != tensor.dtype:
        raise ValueError(f"{key}: announced {tensor.shape} {tensor.dtype}, got {value.shape} {value.dtype}")
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
