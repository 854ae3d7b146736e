"""Weight tables: which of our parameters is which of their tensors, as data that both directions read.

A table is a list of entries. A stacked parameter of ours is one entry over as many tensors of theirs; a fused tensor of
theirs is as many entries as it has parts. Transforms are views, so that only what a device needs is ever copied.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from mmjax.layers.parameters import Parameters, ParameterSpec
from mmjax.types import UserError
from mmjax.weights.safetensors import Tensor, Tensors

log = logging.getLogger(__name__)

# Tensors that files may hold and nobody needs: tables that are computed, buffers of old releases, the heads of BERT's training.
IGNORABLE = (
    r"cls\.(predictions|seq_relationship)\..*",
    r".*\.rotary_emb\.inv_freq", r".*\b(position|token_type)_ids", r".*\.EncDecAttention\.relative_attention_bias\.weight",
)  # fmt: skip


Spelling = str | tuple[str, ...]  # a key, or the several that it has in files of different releases


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one layer of our parameter is seen in their tensor, and back. Both are NumPy views."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


COPY = Transform(lambda theirs: theirs, lambda ours: ours)
TRANSPOSE = Transform(lambda theirs: theirs.T, lambda ours: ours.T)


def leading(ones: int) -> Transform:
    """Their tensor has that many leading dimensions of size 1."""
    return Transform(lambda theirs: theirs.reshape(theirs.shape[ones:]), lambda ours: ours.reshape((1,) * ones + ours.shape))


def patches(channels: int, size: int) -> Transform:
    """Their convolution over square patches [d, channels, size, size] is our matrix [channels·size·size, d]."""
    return Transform(
        lambda theirs: theirs.reshape(theirs.shape[0], -1).T, lambda ours: ours.T.reshape(-1, channels, size, size)
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a weight table.

    Args:
      ours: path of our parameter; None = a part of their tensor that has no place in ours: written as zeros, not read.
      theirs: their key, or several spellings of it, of which the first is written. "{layer}" stands for the layer.
      transform: between one layer of ours and theirs.
      layers: for a stacked parameter, their number of each of our layers.
      part: (i, n): ours is the i-th of n equal parts of their first dimension.
      vocab: size of their vocabulary where ours is padded.
      duplicate: a second copy of ours that some files hold: it must be equal, and is never written.
    """

    ours: str | None
    theirs: Spelling
    transform: Transform = COPY
    layers: Sequence[int] | None = None
    part: tuple[int, int] = (0, 1)
    vocab: int = 0
    duplicate: bool = False

    def keys(self) -> list[tuple[str, ...]]:
        """The spellings of their key, for each of our layers."""
        if self.layers is None:
            return [spellings(self.theirs)]
        return [tuple(key.format(layer=layer) for key in spellings(self.theirs)) for layer in self.layers]

    def shape(self, spec: ParameterSpec) -> tuple[int, ...]:
        """The shape of one layer of ours without the padding of the vocabulary."""
        axes = spec.axes[1:] if spec.stacked else spec.axes
        return tuple(
            self.vocab if self.vocab and axis == "vocab" else size
            for axis, size in zip(axes, spec.unstacked_shape, strict=True)
        )

    def their_shape(self, spec: ParameterSpec) -> tuple[int, ...]:
        """The shape of their tensor."""
        first, *rest = self.transform.write(np.broadcast_to(np.int8(0), self.shape(spec))).shape or (None,)
        return () if first is None else (first * self.part[1], *rest)

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """One layer of ours inside their tensor."""
        index, parts = self.part
        if parts > 1:
            size = tensor.shape[0] // parts
            tensor = tensor[index * size : (index + 1) * size]
        return self.transform.read(tensor)


Table = list[Entry]


def spellings(theirs: Spelling) -> tuple[str, ...]:
    """All spellings of a key."""
    return (theirs,) if isinstance(theirs, str) else theirs


def _within(stems: Spelling, name: str) -> Spelling:
    """The keys of a tensor inside their module, for each spelling of the module."""
    return f"{stems}.{name}" if isinstance(stems, str) else tuple(f"{stem}.{name}" for stem in stems)


def linear(ours: str, theirs: Spelling, *, bias: bool = True, layers: Sequence[int] | None = None) -> Table:
    """Entries of a linear layer, whose weight torch stores as [outputs, inputs]."""
    kernel = Entry(f"{ours}.kernel", _within(theirs, "weight"), TRANSPOSE, layers)
    return [kernel, Entry(f"{ours}.bias", _within(theirs, "bias"), layers=layers)] if bias else [kernel]


def norm(ours: str, theirs: Spelling, *, bias: bool = True, layers: Sequence[int] | None = None) -> Table:
    """Entries of a normalisation layer."""
    scale = Entry(f"{ours}.scale", _within(theirs, "weight"), layers=layers)
    return [scale, Entry(f"{ours}.bias", _within(theirs, "bias"), layers=layers)] if bias else [scale]


def prefixed(table: Iterable[Entry], ours: str, theirs: Spelling) -> Table:
    """The table of a part, as it stands inside a whole: `ours` and `theirs` come before every path and key.

    Several spellings of `theirs` are all read; the first is written.
    """

    def moved(entry: Entry) -> Entry:
        keys = tuple(prefix + key for prefix in spellings(theirs) for key in spellings(entry.theirs))
        return dataclasses.replace(entry, ours=None if entry.ours is None else ours + entry.ours, theirs=keys)

    return [moved(entry) for entry in table]


def read(
    table: Table,
    tensors: Tensors,
    specs: Mapping[str, ParameterSpec],
    dtype: Any = None,
    shardings: Mapping[str, Sharding] | None = None,
    ignorable: Sequence[str] = IGNORABLE,
    prefixes: tuple[str, ...] = ("",),
) -> Parameters:
    """Reads parameters; each device's slice is copied straight from the files.

    Args:
      table: of the whole model. Parameters of `specs` that no entry names are not read.
      tensors: of `mmjax.weights.safetensors.open_directory`.
      specs: of our parameters.
      dtype: None keeps the files' dtype; else a dtype, or one by path.
      shardings: by path; None = the default device.
      ignorable: regular expressions of keys that may be left unread.
      prefixes: only paths that begin with one of these are read.

    Returns:
      An array for every such path that the table names. Tensors that hold NaN are read, and a warning names them.

    Raises:
      UserError: one report of all missing, unexpected and misshapen tensors.
    """
    check(table, tensors, specs, ignorable)
    parameters, damaged = {}, {}
    for entry in table:
        if entry.ours is not None and not entry.duplicate and entry.ours.startswith(prefixes):
            sharding = None if shardings is None else shardings[entry.ours]
            parameters[entry.ours] = _load(entry, tensors, specs[entry.ours], dtype, sharding, damaged)
    if damaged:
        log.warning("the weights in %s are damaged: %s", tensors.source, report("with NaN", list(damaged), []))
    return parameters


def _load(
    entry: Entry, tensors: Tensors, spec: ParameterSpec, dtype: Any, sharding: Sharding | None, damaged: dict[str, None]
) -> jax.Array:
    """Copies one shard after the other from the files into memory that its device then owns: there is no second copy."""
    keys = [_found(spellings, tensors) for spellings in entry.keys()]
    views = [entry.view(tensors[key]) for key in keys]
    wanted = dtype.get(entry.ours) if isinstance(dtype, Mapping) else dtype
    if wanted is None:
        wanted = functools.reduce(jnp.promote_types, (view.dtype for view in views))

    def take(index: tuple[slice, ...]) -> np.ndarray:
        ranges = [range(*piece.indices(size)) for piece, size in zip(index, spec.shape, strict=True)]
        result = _aligned_zeros([len(positions) for positions in ranges], np.dtype(wanted))
        layers, inner = (ranges[0], ranges[1:]) if spec.stacked else (range(1), ranges)
        for i, layer in enumerate(layers):
            target = result[i, ...] if spec.stacked else result  # with "...", a view even of a scalar
            # A view may end before ours does, where a vocabulary is padded; what lies beyond stays zero.
            values = views[layer][(..., *(slice(positions.start, positions.stop) for positions in inner))]
            _copy(values, target[(..., *(slice(size) for size in values.shape))])
            if _has_nan(target):
                damaged[keys[layer]] = None
        return result

    if sharding is None:
        return jax.device_put(take((slice(None),) * len(spec.shape))).block_until_ready()
    owners = sharding.addressable_devices_indices_map(spec.shape)
    # A transfer holds on to its host memory, so each is waited for.
    shards = [jax.device_put(take(index), device).block_until_ready() for device, index in owners.items()]
    return jax.make_array_from_single_device_arrays(spec.shape, sharding, shards)


def _aligned_zeros(shape: Sequence[int], dtype: np.dtype, alignment: int = 64) -> np.ndarray:
    """Zeros whose first byte lies where XLA wants it: a CPU device then takes the memory over and copies nothing."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(f"u{values.dtype.itemsize}")


def _copy(values: np.ndarray, target: np.ndarray) -> None:
    """target[...] = values, several times faster for the matrices of weight files than NumPy does it unasked."""
    if values.dtype == target.dtype:
        values, target = _bits(values), _bits(target)  # bfloat16 is foreign to NumPy, integers are not
    if values.ndim != 2 or values.strides[0] > values.strides[1]:
        target[...] = values
        return
    for start in range(0, values.shape[1], 32):  # a transposed matrix in strips whose lines stay in the processor's cache
        strip = slice(start, start + 32)
        target[:, strip] = values[:, strip]


def _has_nan(values: np.ndarray, piece: int = 1 << 20) -> bool:
    """Whether contiguous floats hold a NaN, whose bits without the sign lie above those of infinity."""
    if values.dtype not in (np.float16, jnp.bfloat16, np.float32):
        return False
    infinity, bits = _bits(np.asarray(np.inf, values.dtype)), _bits(values).reshape(-1)
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return any((bits[i : i + piece] & magnitude).max() > infinity for i in range(0, bits.size, piece))


def _found(spellings: Sequence[str], tensors: Mapping[str, Any]) -> str:
    return next((key for key in spellings if key in tensors), spellings[0])


def check(table: Table, tensors: Tensors, specs: Mapping[str, ParameterSpec], ignorable: Sequence[str] = IGNORABLE) -> None:
    """Compares a table with the files. Arguments and error as in `read`."""
    used, missing, misshapen, differing = set(), [], [], []
    for entry in table:
        for spellings in entry.keys():
            key = _found(spellings, tensors)
            used.add(key)
            if key not in tensors:
                missing += [] if entry.duplicate else [key]
            elif entry.ours is None:
                continue
            elif tensors[key].shape != (expected := entry.their_shape(specs[entry.ours])):
                misshapen.append(f"{key} (expected {expected}, got {tensors[key].shape})")
            elif entry.duplicate and not np.array_equal(tensors[key], tensors[_original(entry, table, tensors)]):
                differing.append(key)
    unexpected = [key for key in tensors if key not in used and not any(re.fullmatch(p, key) for p in ignorable)]
    missing = list(dict.fromkeys(missing))
    reports = [
        report("missing", missing, unexpected),
        report("unexpected", unexpected, missing),
        report("of another shape", list(dict.fromkeys(misshapen)), []),
        report("different from the tensor that it should repeat", differing, []),
    ]
    if any(reports):
        raise UserError(f"the weights in {tensors.source} do not fit its config: {'; '.join(filter(None, reports))}")


def unread(table: Table, tensors: Tensors) -> tuple[str, ...]:
    """The tensors that no row of a table names."""
    named = {key for entry in table for spellings in entry.keys() for key in spellings}
    return tuple(key for key in tensors if key not in named)


def _original(duplicate: Entry, table: Table, tensors: Tensors) -> str:
    entry = next(entry for entry in table if entry.ours == duplicate.ours and not entry.duplicate)
    return _found(entry.keys()[0], tensors)


def report(what: str, keys: list[str], others: list[str]) -> str:
    """'3 missing: a (nearest: b), c' for a message: keys that differ in a layer number only are told once.

    Args:
      what: is the matter with the keys.
      keys: in question; of none there is nothing to tell.
      others: among which the key that was meant may be.
    """
    if not keys:
        return ""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", key), []).append(key)
    texts = []
    for pattern, members in groups.items():
        near = difflib.get_close_matches(members[0], others, n=1, cutoff=0.6)
        count = f" [{len(members)}]" if len(members) > 1 else ""
        texts.append((pattern + count if count else members[0]) + (f" (nearest: {near[0]})" if near else ""))
    return f"{len(keys)} {what}: {', '.join(texts)}"


def write(table: Table, parameters: Parameters, specs: Mapping[str, ParameterSpec]) -> dict[str, Tensor]:
    """Their tensors, each fetched from the devices when it is asked for.

    Args:
      table: of the whole model; parameters that no entry names are left out.
      parameters: by path.
      specs: of our parameters.

    Returns:
      A lazy tensor for each of their keys, for `mmjax.weights.safetensors.save_directory`.
    """
    parts: dict[str, list[tuple[Entry, int]]] = {}
    for entry in table:
        if not entry.duplicate:
            for layer, spellings in enumerate(entry.keys()):
                parts.setdefault(spellings[0], []).append((entry, layer))
    return {
        key: _tensor(key, sorted(owners, key=lambda owner: owner[0].part), parameters, specs) for key, owners in parts.items()
    }


def _tensor(key: str, owners: list[tuple[Entry, int]], parameters: Parameters, specs: Mapping[str, ParameterSpec]) -> Tensor:
    if [entry.part for entry, _ in owners] != [(i, len(owners)) for i in range(len(owners))]:
        raise ValueError(f"{key}: the table has the parts {[entry.part for entry, _ in owners]}")
    named = next(entry for entry, _ in owners if entry.ours is not None)
    dtype = np.dtype(parameters[named.ours].dtype)
    shape = named.their_shape(specs[named.ours])

    def load() -> np.ndarray:
        zeros = np.zeros((shape[0] // len(owners), *shape[1:]), dtype) if len(owners) > 1 else None
        values: list[Any] = [
            zeros if entry.ours is None else _written(entry, layer, parameters, specs) for entry, layer in owners
        ]
        return np.concatenate(values) if len(owners) > 1 else values[0]

    return Tensor(shape, dtype, load)


def _written(entry: Entry, layer: int, parameters: Parameters, specs: Mapping[str, ParameterSpec]) -> np.ndarray:
    value, spec = parameters[entry.ours], specs[entry.ours]
    if spec.stacked:
        value = jax.lax.dynamic_index_in_dim(jnp.asarray(value), jnp.int32(layer), keepdims=False)
    value = np.asarray(value)[(..., *(slice(size) for size in entry.shape(spec)))]  # with "...", a view even of a scalar
    return entry.transform.write(value)
