"""A small real training run in a process of its own, for tests that kill it.

Usage: toy.py WORKDIR [--steps=N] [--pace=SECONDS] [--save-every=N] [--hang-at=N] [--hang-seconds=S] [--nan-from=N] [--width=N]
       [--process=I --processes=N --port=P --peer-seconds=S --hang-process=I]
A two-layer network with dropout and AdamW learns from batches that are a pure function of their number.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.parallel import processes
from mmjax.training.checkpoint import Checkpoints, flatten
from mmjax.training.digest import digests
from mmjax.training.goodput import Goodput
from mmjax.training.lock import run_lock
from mmjax.training.loop import Loop, Schedule, Services
from mmjax.training.metrics import Metrics
from mmjax.training.preemption import StopRequests
from mmjax.training.profile import ProfileWindow
from mmjax.training.progress import StageProgress
from mmjax.training.watchdog import Watchdog
from mmjax.types import UserError
from mmjax.types.files import replace_file

STAGE = "toy"
optimizer = optax.adamw(1e-2)


def init(width: int):
    keys = jax.random.split(jax.random.key(0))
    weights = {"in": jax.random.normal(keys[0], (4, width)), "out": jax.random.normal(keys[1], (width, 1)) / width}
    return {
        "step": jnp.zeros((), jnp.int32),
        "trainable": weights,
        "opt_state": optimizer.init(weights),
        "skipped": jnp.zeros((), jnp.int32),
        "key": jax.random.key(1),
    }


@jax.jit
def fresh(state):
    return jax.tree.map(jnp.copy, state)


def loss_of(weights, batch, key):
    hidden = jax.nn.relu(batch["x"] @ weights["in"])
    hidden = jnp.where(jax.random.bernoulli(key, 0.9, hidden.shape), hidden, 0)
    return jnp.mean((hidden @ weights["out"] - batch["y"]) ** 2)


def train_step(state, batch):
    key = jax.random.fold_in(state["key"], state["step"])
    loss, gradient = jax.value_and_grad(loss_of)(state["trainable"], batch, key)
    updates, opt_state = optimizer.update(gradient, state["opt_state"], state["trainable"])
    bad = ~jnp.isfinite(loss)
    new = {"trainable": optax.apply_updates(state["trainable"], updates), "opt_state": opt_state}
    new = jax.tree.map(lambda old, value: jnp.where(bad, old, value), {name: state[name] for name in new}, new)
    skipped = jnp.where(bad, state["skipped"] + 1, 0)
    new |= {"step": state["step"] + 1, "skipped": skipped, "key": state["key"]}
    return new, {"loss": loss, "guard/consecutive": skipped.astype(jnp.float32)}


def batches(start: int, options):
    number = start
    while True:
        rng = np.random.default_rng(number)
        x = rng.normal(size=(8, 4)).astype(np.float32)
        if number >= options.nan_from:
            x[:] = np.nan
        if number == options.hang_at and options.process == options.hang_process:
            time.sleep(1000)
        time.sleep(options.pace)
        yield {"x": x, "y": np.sin(x.sum(-1, keepdims=True))}
        number += 1


def check(metrics, step):
    if metrics["guard/consecutive"] >= 3:
        raise UserError(f"steps {step - 2} to {step} gave bad updates")


def spread(state):
    """The state on the devices of all processes, its weights and moments split over them, and how to place a batch."""
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def put(leaf, spec):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, NamedSharding(mesh, spec), host.__getitem__)

    def put_state(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf), PartitionSpec()))
        return put(leaf, PartitionSpec("fsdp") if leaf.ndim and leaf.shape[0] % len(jax.devices()) == 0 else PartitionSpec())

    return jax.tree.map(put_state, state), lambda batch: jax.tree.map(lambda leaf: put(leaf, PartitionSpec("fsdp")), batch)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--hang-at", type=int, default=-1)
    parser.add_argument("--hang-seconds", type=float, default=0.0)
    parser.add_argument("--peer-seconds", type=float, default=0.0)
    parser.add_argument("--hang-process", type=int, default=0)
    parser.add_argument("--nan-from", type=int, default=10**9)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--profile-steps", type=int, default=0)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.processes > 1:
        processes.start(f"127.0.0.1:{options.port}", options.processes, options.process)
    primary = options.process == 0
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequests())
        stack.enter_context(run_lock(options.workdir) if primary else contextlib.nullcontext())
        metrics = stack.enter_context(contextlib.closing(Metrics(options.workdir, primary=primary)))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(options.workdir / "checkpoints" / STAGE)))
        goodput = Goodput()
        stacks = options.workdir / "stacks.txt"
        watchdog = stack.enter_context(Watchdog(stacks, options.hang_seconds, options.peer_seconds, goodput.account))
        state = fresh(init(options.width))
        place = lambda tree: tree  # noqa: E731
        if options.processes > 1:
            state, place = spread(state)
        restored = checkpoints.restore(state)
        start = restored.step if restored else 0
        services = Services(
            checkpoints=checkpoints,
            metrics=metrics,
            progress=stack.enter_context(contextlib.closing(StageProgress(STAGE, options.steps, start, shown=primary))),
            goodput=goodput,
            watchdog=watchdog,
            stop=stop,
            profile=ProfileWindow(options.workdir / "profile", 2, options.profile_steps),
        )
        step = jax.jit(train_step, donate_argnums=0)
        schedule = Schedule(steps=options.steps, log_every=3, save_every_steps=options.save_every)
        replayed = metrics.rewind([STAGE], STAGE, start)
        loop = Loop(STAGE, step, schedule, services, check=check, compilations=step._cache_size, replayed=replayed)
        if restored:
            loop.resume(restored.record)
        state = loop.run(
            restored.state if restored else state, (place(batch) for batch in batches(start, options)), start=start
        )
        final = str(digests(flatten(state)))
        if primary:
            replace_file(options.workdir / "final.txt", final)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        processes.leave(2)
