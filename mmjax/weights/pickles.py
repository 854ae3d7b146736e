"""Torch's pickled weights (.bin, .pth), without torch: read, tensors are mapped from the file, and nothing else can come out.

A .bin file is a zip archive of uncompressed members: `*/data.pkl` builds a dictionary of tensors, `*/data/<key>` are the bytes
of their storages. Unpickling runs what a file names, so only the names below exist: a file that asks for others is refused.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.types import UserError
from mmjax.types.files import replacing
from mmjax.weights import safetensors
from mmjax.weights.safetensors import Tensor, Tensors

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
LOCAL_HEADER = struct.Struct("<26x2H")  # of a zip member: the lengths of its name and of its extra field
# What reading damaged bytes raises; NotImplementedError where zipfile takes them for a compression that it does not know.
DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, KeyError, IndexError, ValueError, TypeError, AttributeError,
    EOFError, RecursionError, OverflowError, NotImplementedError, OSError,
)  # fmt: skip


def open_directory(directory: str | Path, stem: str = "pytorch_model") -> Tensors:
    """The pickled weights of a directory: `<stem>.bin`, or `<stem>.bin.index.json` and the files that it names.

    Raises:
      UserError: naming the file that is missing, damaged or asks for more than tensors.
    """
    return safetensors.open_directory(directory, stem, suffix=".bin", read=read_file)


def read_file(path: str | Path, within: str = "") -> dict[str, np.ndarray]:
    """A read-only view of each tensor of one file, by name. Errors as in `open_directory`.

    Args:
      path: of the file.
      within: where the file has an entry of this name, the tensors are what it holds, and what stands beside it is passed over.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            [root] = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
            data = np.memmap(path, np.uint8, mode="r")

            def storage(key: str, dtype: np.dtype) -> np.ndarray:
                return _stored(data, members[f"{root}data/{key}"]).view(dtype)

            with archive.open(f"{root}data.pkl") as file:
                loaded = _Unpickler(file, storage).load()
            loaded = loaded[within] if within in loaded else loaded
        tensors = {key: value for key, value in loaded.items() if isinstance(value, np.ndarray)}
    except DAMAGED as error:
        raise UserError(f"{path} is damaged, or holds more than the tensors of a model: {error!r}") from None
    if len(tensors) < len(loaded):
        raise UserError(f"{path}: {next(key for key in loaded if key not in tensors)!r} is no tensor; expected tensors by name")
    return tensors


def write_file(path: str | Path, tensors: Mapping[str, Tensor], within: str) -> Path:
    """Writes tensors as `torch.save({within: {name: tensor}}, path)` does; each is fetched when its turn comes."""
    path = Path(path)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("archive/data.pkl", _program(tensors, within))
        archive.writestr("archive/byteorder", "little")
        for key, tensor in enumerate(tensors.values()):
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as file:
                file.write(np.ascontiguousarray(tensor.load()).tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def _program(tensors: Mapping[str, Tensor], within: str) -> bytes:
    """The pickle that builds the dictionary: it names torch's functions, which `pickle.dumps` writes only if torch is there."""
    entries = (_constant(name) + _tensor(key, tensor) for key, (name, tensor) in enumerate(tensors.items()))
    inner = pickle.EMPTY_DICT + pickle.MARK + b"".join(entries) + pickle.SETITEMS
    outer = pickle.EMPTY_DICT + pickle.MARK + _constant(within) + inner + pickle.SETITEMS
    return pickle.PROTO + b"\x02" + outer + pickle.STOP


def _tensor(key: int, tensor: Tensor) -> bytes:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)"""
    kind = next(name for name, dtype in STORAGES.items() if dtype == tensor.dtype)
    strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    storage = (_constant("storage"), _name("torch", kind), *map(_constant, (str(key), "cpu", math.prod(tensor.shape))))
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = (*map(_constant, (0, tensor.shape, strides, False)), hooks)
    values = pickle.MARK + b"".join(storage) + pickle.TUPLE + pickle.BINPERSID
    given = pickle.MARK + values + b"".join(arguments) + pickle.TUPLE
    return _name("torch._utils", "_rebuild_tensor_v2") + given + pickle.REDUCE


def _constant(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]  # without its protocol and its end


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _stored(data: np.ndarray, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    name, extra = LOCAL_HEADER.unpack_from(data[member.header_offset :][: LOCAL_HEADER.size].tobytes())
    begin = member.header_offset + LOCAL_HEADER.size + name + extra
    if begin + member.file_size > data.size:
        raise ValueError(f"{member.filename} ends beyond the file")
    return data[begin : begin + member.file_size]


def _rebuild_tensor(storage: np.ndarray, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any) -> np.ndarray:
    """Torch's tensor over a storage, with offset and strides in elements; it must not reach beyond."""
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"shape {shape}, strides {strides}, offset {offset}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if not math.prod(shape):
        return np.zeros(shape, storage.dtype)
    if last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size}")
    size = storage.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [size * stride for stride in strides], writeable=False)


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries, numbers, text and tensors."""

    NAMES: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }

    def __init__(self, file: Any, storage: Callable[[str, np.dtype], np.ndarray]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.NAMES[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it asks for {kind!r}")
        return self._storage(key, dtype)
