"""The train step: (state, frozen, batch) -> (state, metrics), one pure function under one `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mmjax.data.render import totals
from mmjax.layers.attention import attention_by
from mmjax.layers.parameters import Definition, Parameters
from mmjax.layers.stack import remat
from mmjax.parallel.axes import batch_shards, leaf_sharding, replicated, without
from mmjax.parallel.rows import rows_on
from mmjax.training.guard import advance, is_bad, keep_if
from mmjax.training.optimizer import Optimizer
from mmjax.training.stage import Stage
from mmjax.training.state import State
from mmjax.types import UserError

Scalars = dict[str, Float[Array, ""]]
Ratios = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


@runtime_checkable
class Objective(Protocol):
    """What a stage minimises: Σ over terms of weights[term] · sum / count."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term; 1 for a term that is not named."""
        ...

    @property
    def pairwise(self) -> bool:
        """Whether a term compares rows of the batch with each other, so that micro-batches would change it."""
        ...

    def counts(self, batch: Any) -> Scalars:
        """What each term's sum is divided by; depends on the batch only."""
        ...

    def sums(self, module: Any, batch: Any, key: Array) -> tuple[Scalars, Ratios]:
        """The sum of each term and the (sum, count) of each metric, over the rows of a (micro-)batch."""
        ...


def make_loss(
    definition: Definition, stage: Stage, objective: Objective
) -> Callable[..., tuple[Array, tuple[Scalars, Ratios]]]:
    """The loss of a (micro-)batch: loss(trainable, frozen, batch, counts, key) -> (loss, (sums, metrics)).

    `counts` are those of the global batch, so that the losses of its micro-batches add up to its loss.
    """
    compute_dtype = jnp.dtype(stage.compute_dtype)

    def loss(trainable: Parameters, frozen: Parameters, batch: Any, counts: Scalars, key: Array) -> tuple[Array, Any]:
        module = definition.bind(trainable | jax.lax.stop_gradient(frozen), compute_dtype)
        with remat(stage.remat), attention_by(stage.attention):
            sums, metrics = objective.sums(module, batch, key)
        if sums.keys() != counts.keys():
            raise ValueError(f"the objective has counts of {sorted(counts)}, but sums of {sorted(sums)}")
        sums = _float32(sums)
        total = sum(objective.weights.get(term, 1.0) * _mean(sums[term], counts[term]) for term in sums)
        return jnp.asarray(total, jnp.float32), (sums, _float32(metrics))

    return loss


def make_train_step(
    definition: Definition, stage: Stage, objective: Objective, optimizer: Optimizer, state: Any, frozen: Mapping[str, Any]
) -> Any:
    """The jitted step of a stage: step(state, frozen, batch) -> (state, metrics).

    `state` is donated, `frozen` is not, and nothing but `state.trainable` is differentiated. Metrics are replicated float32
    scalars: "loss", "loss/<term>" (unweighted means), the objective's, those of `mmjax.data.render.totals`, "gradient_norm"
    (before clipping), "learning_rate", "guard/skipped", "guard/consecutive".

    Args:
      definition, stage, objective, optimizer: what to train and how.
      state, frozen: arrays or `jax.ShapeDtypeStruct`s, with the shardings that the step is to keep.

    Raises:
      UserError: rows that do not divide over micro-batches and devices, or micro-batches with a pairwise objective.
    """
    mesh = state.step.sharding.mesh
    accumulation = stage.optimizer.accumulation
    _check(stage, objective, mesh)
    placement = jax.tree.map(lambda leaf: leaf.sharding, state.trainable)
    reduced = jax.tree.map(lambda sharding: without(sharding, "sequence"), placement)
    differentiate = jax.value_and_grad(make_loss(definition, stage, objective), has_aux=True)

    def gradients(state: State, frozen: Parameters, batch: Any, counts: Scalars) -> tuple[Array, tuple[Scalars, Ratios], Any]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def one(micro_batch: Any, index: Any) -> tuple[Any, Any]:
            output, gradient = differentiate(state.trainable, frozen, micro_batch, counts, jax.random.fold_in(key, index))
            # Over one axis XLA reduces and scatters at once, over two it would send every device all of the sum.
            gradient = jax.lax.with_sharding_constraint(gradient, reduced)
            return output, jax.lax.with_sharding_constraint(_float32(gradient), placement)

        if accumulation == 1:
            (loss, sums), gradient = one(batch, 0)
            return loss, sums, gradient

        structure = jax.tree.structure(batch)

        def body(total: Any, inputs: tuple[list[Array], Array]) -> tuple[Any, Any]:
            leaves, index = inputs
            output, gradient = one(jax.tree.unflatten(structure, leaves), index)
            return jax.tree.map(jnp.add, total, gradient), output

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), state.trainable)
        zeros = jax.lax.with_sharding_constraint(zeros, placement)
        inputs = (micro_batches(batch, accumulation, mesh), jnp.arange(accumulation))
        gradient, outputs = jax.lax.scan(body, zeros, inputs)
        loss, sums = jax.tree.map(lambda leaf: leaf.sum(0), outputs)
        return loss, sums, gradient

    def train_step(state: State, frozen: Parameters, batch: Any) -> tuple[State, Scalars]:
        batch = jax.tree_util.tree_map_with_path(
            lambda keys, leaf: jax.lax.with_sharding_constraint(leaf, leaf_sharding(keys, leaf.shape, mesh)), batch
        )
        counts = _float32(objective.counts(batch))
        with rows_on(mesh):
            loss, (sums, metrics), gradient = gradients(state, frozen, batch, counts)
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        decay = stage.optimizer.ema
        ema = {path: decay * average + (1 - decay) * trainable[path] for path, average in state.ema.items()}
        bad = is_bad(stage.guard, state.guard, loss, norm)
        old = (state.trainable, state.opt_state, state.ema)
        trainable, opt_state, ema = keep_if(bad, old, (trainable, opt_state, ema))
        guard = advance(state.guard, bad, norm)
        logged = {
            "loss": loss,
            **{f"loss/{term}": _mean(sums[term], counts[term]) for term in sums},
            **{name: _mean(*ratio) for name, ratio in metrics.items()},
            **totals(getattr(batch, "facts", {})),
            "gradient_norm": norm,
            "learning_rate": optimizer.learning_rate(state.opt_state),
            "guard/skipped": guard.skipped,
            "guard/consecutive": guard.consecutive,
        }
        return State(state.step + 1, trainable, opt_state, ema, guard, state.key), _float32(logged)

    state_placement, frozen_placement = jax.tree.map(lambda leaf: leaf.sharding, (state, dict(frozen)))
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_placement, frozen_placement, None),  # a batch comes as it was put there, or is put there first
        out_shardings=(state_placement, replicated(mesh)),
    )


def lower_step(step: Any, state: Any, frozen: Mapping[str, Any], batch: Any) -> Any:
    """Lowers a step on shapes alone; `.compile()` of the result needs no array either.

    Args:
      step: of `make_train_step`.
      state, frozen: as given to it.
      batch: a batch, or its shapes.
    """
    mesh = state.step.sharding.mesh
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, dict(frozen)))

    def placed(keys: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)  # NumPy's int64 is JAX's int32
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf_sharding(keys, leaf.shape, mesh))

    return step.lower(*shapes, jax.tree_util.tree_map_with_path(placed, batch))


def micro_batches(batch: Any, accumulation: int, mesh: Mesh) -> list[Array]:
    """The leaves of a batch, [accumulation, b / accumulation, …]: micro-batch i holds rows i, i + accumulation, ….

    A device holds consecutive rows, so it holds its share of every micro-batch and no row moves between devices.
    """

    def split(keys: tuple[Any, ...], leaf: Array) -> Array:
        rows = leaf.reshape(leaf.shape[0] // accumulation, accumulation, *leaf.shape[1:]).swapaxes(0, 1)
        one = leaf_sharding(keys, rows.shape[1:], mesh).spec
        return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(None, *one)))

    return [split(keys, leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(batch)]


def _check(stage: Stage, objective: Objective, mesh: Mesh) -> None:
    rows, accumulation, shards = stage.data.rows, stage.optimizer.accumulation, batch_shards(mesh)
    flag = f"--config.stages.{stage.name}."
    if objective.pairwise and accumulation > 1:
        raise UserError(
            f"objective {stage.objective.name!r} compares the rows of a batch with each other, so it cannot be split into "
            f"{accumulation} micro-batches; set {flag}optimizer.accumulation=1"
        )
    sequence = mesh.shape["sequence"]
    for name in ("length", "source_length"):
        if getattr(stage.data, name) % sequence:
            raise UserError(
                f"{flag}data.{name}={getattr(stage.data, name)} positions do not divide over the mesh axis 'sequence' of size "
                f"{sequence}; set it to a multiple of {sequence}, or change {flag}mesh.sequence"
            )
    if rows % (accumulation * shards):
        raise UserError(
            f"{rows} rows do not divide over {accumulation} micro-batches on replica×fsdp = {shards} groups of devices; "
            f"set {flag}data.rows to a multiple of {accumulation * shards}, or change {flag}mesh.fsdp"
        )


def _mean(total: Array, count: Array) -> Array:
    """total / count, 0 where there is nothing to count."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
