"""Where every array lives: one table from logical axis names to mesh axes.

Tensor parallelism follows the table and must divide, as `sequence` must the positions of text. Parameters are stored in pieces
over `fsdp` and `sequence` together, and gathered where they are used: these two follow the table where that works, else they
take a leaf's largest dimension that they divide, else the leaf is replicated. The stacked `layers` axis is never sharded, since
the scan over layers slices it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.types import UserError

Axes = tuple[str, ...]

# Logical axis -> the mesh axes that split it, outermost first.
LOGICAL_AXES: dict[str, Axes] = {
    # activations: rows of text and their positions; media slots of a row, or queries of them; what stands alone
    "batch": ("replica", "fsdp"),
    "text": ("sequence",),
    "slots": ("sequence",),
    "rows": ("replica", "fsdp", "sequence"),
    "vocab_share": ("tensor",),  # of scores, and of the table while tokens are looked up
    # parameters of all layers of a stack
    "layers": (),
    # parameters: widths that every device of a tensor group needs whole
    "embed": (),
    "head_dim": (),
    "queries": (),
    "patches": (),
    "positions": (),
    "channels": (),
    "height": (),
    "width": (),
    "rank": (),
    # parameters: widths that tensor parallelism splits
    "vocab": ("fsdp", "sequence", "tensor"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
}

# The mesh axes over which parameters, their gradients and optimizer state are only stored: every use gathers them.
STORAGE: Axes = ("fsdp", "sequence")

# How the leaves of each field of a batch are split: the first of these layouts that divides, else the last as far as it does.
_TEXT = (("batch", "text"),)
_MEDIA = (("rows",), ("batch", "slots"))
BATCH_LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": _TEXT, "source": _TEXT, "feature_index": _TEXT, "prior_index": _TEXT, "media": _MEDIA, "queries": _MEDIA,
}  # fmt: skip


@runtime_checkable
class Leaf(Protocol):
    """What is read of a parameter's spec: its stored shape and the logical axis name (or None) of each dimension."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def axes(self) -> tuple[str | None, ...]: ...


def shardings(
    specs: Mapping[str, Leaf],
    mesh: Mesh,
    overrides: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
    *,
    stage: str = "<stage>",
) -> dict[str, NamedSharding]:
    """The sharding of every parameter.

    Args:
      specs: by path.
      mesh: of `make_mesh`.
      overrides: by path, the mesh axes (a name, several, or None) of every dimension of the unstacked parameter, or of every
        logical axis, by its name; one that is not named is whole. They replace the table, `fsdp` included.
      stage: name of the stage, for messages.

    Raises:
      UserError: a dimension is not divisible by the mesh axes that the table's tensor or sequence entry, or an override,
        asks for.
    """
    overrides = overrides or {}
    return {
        path: NamedSharding(
            mesh,
            _override(path, spec, mesh, overrides[path], stage) if path in overrides else _by_table(path, spec, mesh, stage),
        )
        for path, spec in specs.items()
    }


def replicated_leaves(placement: Mapping[str, NamedSharding]) -> tuple[str, ...]:
    """Paths of the leaves that none of STORAGE could cut, so that every device holds them whole; () where there is nothing
    to cut over."""
    return tuple(
        path
        for path, sharding in placement.items()
        if any(sharding.mesh.shape[axis] > 1 for axis in STORAGE) and not _used(sharding.spec) & set(STORAGE)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading `b`, over (replica, fsdp): rows that no sequence parallelism splits, as in decoding."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_AXES["batch"]))


def leaf_sharding(keys: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where a leaf of a training batch lives, by the field that it stands in.

    Positions of text and source are split over `sequence`. Media are spread over all devices of a row's group too: by rows
    where these divide, else by slots; where neither divides, each of them holds the media of all its rows.

    Args:
      keys: path in a `mmjax.types.Batch`, of `jax.tree_util.tree_map_with_path`; any other tree is split by rows alone.
      shape: of the leaf, all rows of the global batch.
      mesh: of `make_mesh`.
    """
    field = getattr(keys[0], "name", "") if keys else ""
    return NamedSharding(mesh, partition_spec(shape, layout_of(field, shape, mesh), mesh))


def layout_of(field: str, shape: tuple[int, ...], mesh: Mesh) -> tuple[str, ...]:
    """The logical axes of the leading dimensions of a leaf of this field of a batch."""
    *others, last = BATCH_LAYOUTS.get(field, (("batch",),))
    return next((layout for layout in others if _divides(shape, layout, mesh)), last)


def partition_spec(shape: tuple[int, ...], layout: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
    """The mesh axes of the leading dimensions of an activation; of each logical axis as many, outermost first, as divide it.

    Args:
      shape: of the array.
      layout: logical axis names, None = whole; dimensions beyond them are whole.
    """
    entries: list[Axes | None] = []
    for size, name in zip(shape, layout, strict=False):
        axes = [axis for axis in LOGICAL_AXES[name] if mesh.shape[axis] > 1] if name else []
        while axes and size % _ways(tuple(axes), mesh):
            axes.pop()
        entries.append(tuple(axes) or None)
    return PartitionSpec(*entries)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: scalars, counts, keys."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Over how many groups of devices the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES["batch"])


def without(sharding: NamedSharding, axis: str) -> NamedSharding:
    """The same, but whole along one axis of the mesh."""
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in sharding.spec]
    kept = [tuple(name for name in entry if name != axis) or None for entry in entries]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def _by_table(path: str, spec: Leaf, mesh: Mesh, stage: str) -> PartitionSpec:
    split: list[Axes] = []
    for name, size in zip(spec.axes, spec.shape, strict=True):
        if name is not None and name not in LOGICAL_AXES:
            raise ValueError(f"{path}: unknown logical axis {name!r}; the table has {', '.join(LOGICAL_AXES)}")
        taken = {axis for axes in split for axis in axes}
        wanted = tuple(axis for axis in LOGICAL_AXES.get(name or "layers", ()) if axis not in taken and mesh.shape[axis] > 1)
        hard = tuple(axis for axis in wanted if axis not in STORAGE)
        _check(path, name, size, hard, mesh, stage)
        split.append(wanted if size % _ways(wanted, mesh) == 0 else hard)
    for pieces in (STORAGE, *((axis,) for axis in STORAGE)):
        _store(spec, split, tuple(axis for axis in pieces if mesh.shape[axis] > 1), mesh)
    return PartitionSpec(*(axes or None for axes in split))


def _store(spec: Leaf, split: list[Axes], pieces: Axes, mesh: Mesh) -> None:
    """Cuts the largest dimension that these mesh axes divide into pieces, unless one of them cuts the leaf already."""
    if not pieces or any(axis in axes for axes in split for axis in pieces):
        return
    shares = [
        size // _ways(axes, mesh) if name != "layers" else 0
        for name, size, axes in zip(spec.axes, spec.shape, split, strict=True)
    ]
    candidates = [i for i, share in enumerate(shares) if share and share % _ways(pieces, mesh) == 0]
    if candidates:
        largest = max(candidates, key=lambda i: shares[i])
        split[largest] = (*pieces, *split[largest])


def _override(path: str, spec: Leaf, mesh: Mesh, value: Sequence[Any] | Mapping[str, Any], stage: str) -> PartitionSpec:
    stacked = spec.axes[:1] == ("layers",)
    names, shape = (spec.axes[1:], spec.shape[1:]) if stacked else (spec.axes, spec.shape)
    flag = f"--config.stages.{stage}.sharding"
    if isinstance(value, Mapping):
        if unknown := sorted(set(value) - set(LOGICAL_AXES)):
            raise UserError(f"{flag}: {unknown[0]!r} is no logical axis; there are {', '.join(LOGICAL_AXES)}")
        value = [value.get(name or "") for name in names]
    if isinstance(value, str) or len(value) != len(shape):
        raise UserError(f"{flag}: {path} has {len(shape)} dimensions {shape}, the rule gives {value!r}")
    split = [(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in value]
    flat = [axis for axes in split for axis in axes]
    for axis in flat:
        if axis not in mesh.shape or flat.count(axis) > 1:
            raise UserError(f"{flag}: {path}: expected each of {', '.join(mesh.shape)} at most once, the rule gives {value!r}")
    for name, size, axes in zip(names, shape, split, strict=True):
        _check(path, name, size, axes, mesh, stage)
    return PartitionSpec(*([None] * stacked), *(axes or None for axes in split))


def _check(path: str, name: str | None, size: int, axes: Axes, mesh: Mesh, stage: str) -> None:
    if size % _ways(axes, mesh):
        raise UserError(
            f"{path}: dimension {name!r} of size {size} is not divisible by mesh axis {'×'.join(axes)} of size "
            f"{_ways(axes, mesh)}; change --config.stages.{stage}.mesh.{axes[-1]}"
        )


def _divides(shape: tuple[int, ...], layout: Sequence[str], mesh: Mesh) -> bool:
    return all(size % _ways(LOGICAL_AXES[name], mesh) == 0 for size, name in zip(shape, layout, strict=False))


def _ways(axes: Axes, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _used(spec: PartitionSpec) -> set[str]:
    return {axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())}
