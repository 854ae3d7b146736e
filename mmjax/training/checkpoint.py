"""Checkpoints of one stage: Orbax behind one file, with proof that what comes back is what was saved.

`<directory>/<step>/` holds two items, committed together by one rename:
  state   the leaves of the state as a flat {path: array}, by Orbax
  record  JSON: shape, dtype and digest of every leaf, whatever the caller adds (data position, config digest, …), and
          the SHA-256 of all that
Orbax restores flipped bits without a word, therefore every leaf's digest is computed again on restore; a step that does not
pass, or cannot be read, is named in the log, moved to `<step>.damaged`, and the step before it is taken.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array

from mmjax.training.digest import digests
from mmjax.types import UserError

log = logging.getLogger(__name__)

UNFINISHED = ("*.orbax-checkpoint-tmp*", "*.deleted")


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose content is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that passed its checks.

    Args:
      step: its step.
      state: a tree of the target's structure, types and shardings.
      record: what the caller had added on `save`.
    """

    step: int
    state: Any
    record: dict[str, Any]


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, "trainable/llm.norm.scale"; names joined by "/"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(leaf: Any) -> str:
    """The stored form of a leaf, "float32[8, 16]"; typed random keys are stored as their data."""
    leaf = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the record, which the caller may go on changing, together with its SHA-256."""
    text = json.dumps(record, sort_keys=True)
    return {"record": json.loads(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_record(directory: epath.PathLike) -> dict[str, Any]:
    """The record of one checkpoint directory.

    Raises:
      Damaged: it is unreadable or not what was written.
    """
    try:
        sealed = json.loads((epath.Path(directory) / "record" / "metadata").read_text())
        record = sealed["record"]
        if seal(record)["sha256"] == sealed["sha256"]:
            return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its record cannot be read: {error}") from error
    raise Damaged("its record does not match its SHA-256")


def read_leaves(directory: epath.PathLike, wanted: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Array]:
    """Reads some or all leaves of one checkpoint directory and checks their digests.

    Args:
      directory: `…/checkpoints/<stage>/<step>`.
      wanted: by path, anything with shape, dtype and sharding, as stored; shape and dtype must be the record's.
      record: of `read_record`.

    Returns:
      arrays with the wanted shardings that own their memory, so that they may be donated.

    Raises:
      Damaged: they cannot be read or are not what was saved.
    """
    abstract = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for path, leaf in wanted.items()}
    filled = {path: leaf for path, leaf in abstract.items() if leaf.size}
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    try:
        restore_args = ocp.checkpoint_utils.construct_restore_args(filled)
        arguments = ocp.args.PyTreeRestore(item=filled, restore_args=restore_args, partial_restore=True)
        leaves = reader.restore(epath.Path(directory).resolve() / "state", args=arguments)
    except Exception as error:  # whatever a damaged file makes of Orbax and TensorStore: JSON, key, data loss errors …
        raise Damaged(f"its arrays cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    finally:
        reader.close()
    leaves |= {
        path: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding) for path, leaf in abstract.items() if not leaf.size
    }
    # On CPU, Orbax hands out arrays over memory that it owns: a donated one would be written to behind its back.
    leaves = {path: jnp.copy(leaves[path]) for path in wanted}
    changed = [path for path, found in digests(leaves).items() if found != record["leaves"][path]["digest"]]
    if changed:
        raise Damaged(f"{changed[0]} is not what was saved ({len(changed)} of {len(leaves)} leaves differ)")
    return leaves


def check_fits(directory: epath.PathLike, wanted: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raises UserError unless paths, shapes and dtypes are the saved ones. Nothing is ever cast."""
    saved = {path: f"{leaf['dtype']}{leaf['shape']}" for path, leaf in record["leaves"].items()}
    target = {path: describe(leaf) for path, leaf in wanted.items()}
    differing = [
        f"{path}: saved {saved.get(path, 'nothing')}, wanted {target.get(path, 'nothing')}"
        for path in sorted(saved.keys() | target.keys())
        if saved.get(path) != target.get(path)
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise UserError(
            f"the checkpoint {directory} does not fit this config: {'; '.join(differing[:3])}{more}. "
            "Train with the config it was saved with, or give another --workdir."
        )


def everyone(fine: bool) -> bool:
    """Whether all processes report that things are fine."""
    return fine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(fine)).all())


class Checkpoints:
    """The checkpoints of one stage, newest last.

    Args:
      directory: `<workdir>/checkpoints/<stage>`, local or a bucket.
      keep: how many to keep, 1 or more.
      writable: whether to tidy up what killed runs left behind, and to set damaged steps aside. The owner of the run's lock
        says True, everybody else False.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int = 2, writable: bool = True):
        self.directory = epath.Path(directory).resolve()  # Orbax takes absolute paths only
        self.keep = max(keep, 1)
        self.writable = writable
        self._writer: ocp.AsyncCheckpointer | None = None
        if writable and jax.process_index() == 0 and self.directory.exists():
            for pattern in UNFINISHED:
                for leftover in self.directory.glob(pattern):
                    log.warning("removing %s, left by a run that was killed", leftover)
                    leftover.rmtree()

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        if not self.directory.exists():
            return []
        return sorted(
            int(path.name)
            for path in self.directory.iterdir()
            if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path)
        )

    def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Starts to save a step: returns when the state is copied, writes in the background.

        Args:
          step: its number; a committed step is not written twice.
          state: a tree of arrays. Its buffers may be donated as soon as this returns.
          record: more to keep, anything that JSON can hold.

        Raises:
          UserError: the disk is too full, or the save before this one has failed.
        """
        self.wait()
        if step in self.steps():
            return
        leaves = {path: jax.random.key_data(leaf) if is_key(leaf) else leaf for path, leaf in flatten(state).items()}
        self._check_space(step, sum(leaf.nbytes for leaf in leaves.values()))
        found = digests(leaves)
        described = {
            path: {"shape": list(leaf.shape), "dtype": jnp.dtype(leaf.dtype).name, "digest": found[path]}
            for path, leaf in leaves.items()
        }
        if jax.default_backend() == "cpu":  # where "copying to the host" is no copy
            leaves = {path: jnp.copy(leaf) for path, leaf in leaves.items()}
        if self._writer is None:
            handlers = {"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave({path: leaf for path, leaf in leaves.items() if leaf.size}),
            record=ocp.args.JsonSave(seal({**record, "step": step, "leaves": described})),
        )
        try:
            self._writer.save(self.directory / str(step), args=arguments)
        except Exception as error:
            raise self._failed(error) from error

    def poll(self) -> None:
        """Raises UserError if the save in the background has failed. Cheap: meant for every step."""
        if self._writer is not None:
            try:
                self._writer.check_for_errors()
            except Exception as error:
                raise self._failed(error) from error

    def wait(self) -> None:
        """Blocks until the save in the background is committed, and removes the steps that need not be kept."""
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._remove_old()

    def close(self) -> None:
        """Waits and releases the writer's threads."""
        if self._writer is not None:
            try:
                self.wait()
            finally:
                self._writer.close()
                self._writer = None

    def restore(self, target: Any) -> Restored | None:
        """The newest step that is good. The owner of the run's lock is left with it and those that are to be kept.

        Args:
          target: a tree of arrays or `jax.ShapeDtypeStruct`s with shardings, of any mesh.

        Returns:
          the step, or None when nothing has been saved yet.

        Raises:
          UserError: every saved step is damaged, or a good one has other paths, shapes or dtypes than the target.
        """
        wanted = flatten(target)
        damaged: list[str] = []
        for step in reversed(self.steps()):
            directory = self.directory / str(step)
            try:
                leaves, record = self._read(directory, wanted)
            except Damaged as error:
                damaged.append(f"step {step}: {error}")
                log.error("CHECKPOINT DAMAGED, falling back to an older one: %s: %s", directory, error)
                self._set_aside(directory)
                continue
            self._remove_old()  # what a run that was killed between a save and this had no time for
            state = jax.tree.unflatten(jax.tree.structure(target), [leaves[path] for path in wanted])
            own = {name: value for name, value in record.items() if name not in ("leaves", "step")}
            return Restored(step, state, own)
        if damaged:
            raise UserError(
                f"no checkpoint in {self.directory} is good: {'; '.join(damaged)}. They are kept as <step>.damaged; "
                "the same command now starts the stage anew."
            )
        return None

    def _read(self, directory: epath.Path, wanted: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
        """One step as leaves of the wanted types; all processes agree on whether it is good."""
        leaves, record, problem = {}, {}, None
        stored = {path: jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf for path, leaf in wanted.items()}
        stored = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted[path].sharding) for path, leaf in stored.items()
        }
        try:
            record = read_record(directory)
            check_fits(directory, stored, record)
            leaves = read_leaves(directory, stored, record)
        except Damaged as error:
            problem = error
        if not everyone(problem is None):
            raise problem or Damaged("another process could not read it")
        for path, leaf in wanted.items():
            if is_key(leaf):
                leaves[path] = jax.random.wrap_key_data(leaves[path], impl=jax.random.key_impl(leaf))
        return leaves, record

    def _remove_old(self) -> None:
        """Removes the steps that need not be kept."""
        if self.writable and jax.process_index() == 0:
            for step in self.steps()[: -self.keep]:
                # Renamed first: a kill in the middle must not leave half a checkpoint under a good name.
                (self.directory / str(step)).rename(self.directory / f"{step}.deleted").rmtree()

    def _set_aside(self, directory: epath.Path) -> None:
        if self.writable and jax.process_index() == 0:
            aside = directory.parent / f"{directory.name}.damaged"
            if aside.exists():
                aside.rmtree()
            directory.rename(aside)

    def _check_space(self, step: int, needed: int) -> None:
        if jax.process_index() or str(self.directory).startswith("gs://"):
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < needed * 1.05:
            needs, has = (f"{size / 2**20:,.1f} MiB" for size in (needed * 1.05, free))
            saved = ", ".join(map(str, self.steps())) or "none"
            raise UserError(
                f"the checkpoint of step {step} needs {needs}, {self.directory} has {has} free. Make room, lower "
                f"--config.checkpoint.keep={self.keep}, or give a --workdir on a larger disk; the steps already saved "
                f"({saved}) are intact."
            )

    def _failed(self, error: Exception) -> Exception:
        text = " ".join(str(error).split())
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or any(words in text for words in ("No space left", "File too large", "quota exceeded")):
            text = f"the disk is full; make room, lower --config.checkpoint.keep, or give a --workdir on a larger disk ({text})"
        saved = ", ".join(map(str, self.steps())) or "none"
        return UserError(f"saving into {self.directory} failed: {text[:500]}; the steps already saved ({saved}) are intact.")


def restore_leaves(
    directory: epath.PathLike, prefix: str, sharding: Callable[[str], Sharding], *, step: int | None = None
) -> tuple[int, dict[str, Array]]:
    """The newest good step's leaves under a prefix, for whoever needs a part of a state without its target.

    Args:
      directory: `<workdir>/checkpoints/<stage>`.
      prefix: "trainable/" or "ema/".
      sharding: path (without the prefix) -> sharding.
      step: this one and no other.

    Returns:
      the step, and the leaves by path without the prefix; empty if that step has none there.

    Raises:
      UserError: there is no good step.
    """
    checkpoints = Checkpoints(directory, writable=False)
    for candidate in reversed(checkpoints.steps()):
        if step not in (None, candidate):
            continue
        path = checkpoints.directory / str(candidate)
        try:
            record = read_record(path)
            wanted = {
                name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"], sharding=sharding(name.removeprefix(prefix)))
                for name, leaf in record["leaves"].items()
                if name.startswith(prefix)
            }
            leaves = read_leaves(path, wanted, record)
            return candidate, {name.removeprefix(prefix): leaf for name, leaf in leaves.items()}
        except Damaged as error:
            log.error("CHECKPOINT DAMAGED: %s: %s", path, error)
    which = "" if step is None else f" of step {step}"
    raise UserError(f"there is no good checkpoint{which} in {checkpoints.directory}; train that stage first.")
