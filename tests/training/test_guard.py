"""Bad steps: nothing changes by one bit, they are counted, and several in a row stop the run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.training.guard import Guard, advance, check, is_bad
from mmjax.training.stage import GuardConfig
from mmjax.types import UserError
from tests.training.tiny import set_up, tiny_batch, tiny_stage


def poisoned(value):
    batch = tiny_batch()
    batch["pixels"][3, 2] = value
    return batch


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_poisoned_batch_changes_no_bit_and_training_goes_on(value, accumulation):
    setup = set_up(tiny_stage(optimizer={"ema": 0.9, "accumulation": accumulation}))
    state, _ = setup.step(setup.state, setup.frozen, tiny_batch())
    before, statistics = bits((state.trainable, state.opt_state, state.ema)), jax.device_get(state.guard)
    state, metrics = setup.step(state, setup.frozen, poisoned(value))
    assert bits((state.trainable, state.opt_state, state.ema)) == before
    assert float(metrics["guard/skipped"]) == float(metrics["guard/consecutive"]) == 1 and int(state.step) == 2
    assert float(state.guard.mean) == statistics.mean and int(state.guard.good) == 1
    state, metrics = setup.step(state, setup.frozen, tiny_batch(seed=1))
    assert float(metrics["guard/skipped"]) == 1 and float(metrics["guard/consecutive"]) == 0
    assert bits(state.trainable) != before[: len(state.trainable)] and np.isfinite(metrics["loss"])


def test_without_the_guard_the_poison_gets_through():
    setup = set_up(tiny_stage(guard=GuardConfig(skip_non_finite=False)))
    state, metrics = setup.step(setup.state, setup.frozen, poisoned(np.nan))
    assert np.isnan(state.trainable["llm.head"]).any() and float(metrics["guard/skipped"]) == 0


def test_a_spike_is_skipped_after_the_warm_up():
    stage = tiny_stage(guard=GuardConfig(spike_factor=3.0, spike_warmup=2), optimizer={"clip_norm": 0.0})
    setup = set_up(stage)
    loud = {**tiny_batch(), "pixels": 1e3 * tiny_batch()["pixels"]}
    state, metrics = setup.step(setup.state, setup.frozen, tiny_batch())
    state, metrics = setup.step(state, setup.frozen, tiny_batch())
    before = bits(state.trainable)
    state, metrics = setup.step(state, setup.frozen, loud)
    assert bits(state.trainable) == before and float(metrics["guard/skipped"]) == 1
    early, metrics = setup.step(set_up(stage).state, setup.frozen, loud)
    assert float(metrics["guard/skipped"]) == 0


def test_running_statistics_are_mean_and_variance_of_good_steps():
    norms = np.random.default_rng(0).random(20).astype(np.float32)
    guard = Guard.fresh()
    for norm in norms:
        guard = advance(guard, jnp.asarray(False), jnp.asarray(norm))
        guard = advance(guard, jnp.asarray(True), jnp.asarray(np.nan, jnp.float32))
    assert float(guard.mean) == pytest.approx(norms.mean(), rel=1e-5)
    assert float(guard.variance) == pytest.approx(norms.var(), rel=1e-4)
    assert int(guard.good) == int(guard.skipped) == 20


def test_a_bad_step_is_one_with_a_loss_or_a_norm_that_is_not_finite():
    one, nan = jnp.float32(1), jnp.float32(np.nan)
    verdicts = [bool(is_bad(GuardConfig(), Guard.fresh(), *pair)) for pair in ((one, one), (nan, one), (one, nan))]
    assert verdicts == [False, True, True]


def test_several_in_a_row_stop_the_run_and_are_named():
    metrics = {"guard/consecutive": 5.0, "loss": float("nan"), "gradient_norm": float("nan")}
    check(GuardConfig(), {**metrics, "guard/consecutive": 4.0}, 12)
    with pytest.raises(UserError, match=r"steps 8 to 12 of stage 'vqa'.*vqa\.guard\.stop_after=5"):
        check(GuardConfig(), metrics, 12, stage="vqa")
