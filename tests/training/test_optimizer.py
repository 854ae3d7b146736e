"""AdamW against Optax's own and PyTorch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mmjax.training.optimizer import make_optimizer, make_schedule
from mmjax.training.stage import OptimizerConfig

SHAPES = {"kernel": (4, 3), "stack.kernel": (5, 3, 2), "bias": (3,)}
ONES = dict.fromkeys(SHAPES, 1.0)


def draw(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {path: (scale * random.normal(size=shape)).astype(np.float32) for path, shape in SHAPES.items()}


def config(**fields):
    return OptimizerConfig(**{"learning_rate": 1e-2, "schedule": "constant", "clip_norm": 0.0, "weight_decay": 0.1, **fields})


def run(optimizer, steps=6):
    params = jax.tree.map(jnp.asarray, draw(0))
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(draw(step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), dict(a), dict(b))


def test_equals_optax_adamw_with_clipping_and_a_schedule():
    settings = config(schedule="cosine", warmup_steps=2, clip_norm=0.5, final_learning_rate=1e-3)
    ours, _ = run(make_optimizer(settings, 6, ONES, ONES))
    adamw = optax.adamw(make_schedule(settings, 6), b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1)
    theirs, _ = run(optax.chain(optax.clip_by_global_norm(0.5), adamw))
    assert_close(ours, theirs)


def test_equals_torch_adamw():
    ours, _ = run(make_optimizer(config(), 6, ONES, {**ONES, "bias": 0.0}))
    params = {path: torch.nn.Parameter(torch.from_numpy(value)) for path, value in draw(0).items()}
    decayed = [params["kernel"], params["stack.kernel"]]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [params["bias"]], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-8)
    for step in range(6):
        for path, gradient in draw(step + 1).items():
            params[path].grad = torch.from_numpy(gradient)
        adamw.step()
    assert_close(ours, {path: value.detach().numpy() for path, value in params.items()}, 1e-5)


def test_a_vector_of_multipliers_trains_each_layer_at_its_rate():
    rates = np.asarray([0, 0.25, 0.5, 1, 2], np.float32)
    whole, _ = run(make_optimizer(config(), 1, ONES, ONES), steps=1)
    parts, _ = run(make_optimizer(config(), 1, {**ONES, "stack.kernel": rates, "bias": 3.0}, ONES), steps=1)
    before = draw(0)
    expected = (whole["stack.kernel"] - before["stack.kernel"]) * rates[:, None, None]
    np.testing.assert_allclose(parts["stack.kernel"] - before["stack.kernel"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts["bias"] - before["bias"], 3 * (whole["bias"] - before["bias"]), rtol=1e-4, atol=1e-6)


def test_a_vector_of_decays():
    decay = np.asarray([0, 0, 1, 0, 0], np.float32)
    none, _ = run(make_optimizer(config(), 1, ONES, dict.fromkeys(SHAPES, 0.0)), steps=1)
    some, _ = run(make_optimizer(config(), 1, ONES, {**dict.fromkeys(SHAPES, 0.0), "stack.kernel": decay}), steps=1)
    changed = np.asarray(none["stack.kernel"] != some["stack.kernel"]).any((1, 2))
    assert changed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_schedules_warm_up_from_0_and_end_at_the_last_step(schedule, middle):
    settings = config(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10, schedule=schedule)
    rates = [float(make_schedule(settings, 31)(step)) for step in range(31)]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5) and rates[10] == 1
    assert rates[20] == pytest.approx(middle) and rates[30] == pytest.approx(1.0 if schedule == "constant" else 0.1)


def test_the_reported_learning_rate_is_that_of_the_next_update():
    optimizer = make_optimizer(config(learning_rate=1.0, schedule="linear"), 5, ONES, ONES)
    _, state = run(optimizer, steps=2)
    assert float(optimizer.learning_rate(state)) == pytest.approx(0.5)


def test_moments_are_float32_whatever_the_parameters_are():
    state = make_optimizer(config(), 5, ONES, ONES).init(
        {path: jnp.zeros(shape, jnp.bfloat16) for path, shape in SHAPES.items()}
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_schedule_of_lavis():
    """Within the first epoch the warm-up alone, cut off by its end; then a cosine of the number of the epoch."""
    epochs = make_schedule(
        config(
            learning_rate=1e-2, schedule="cosine", warmup_steps=8, warmup_from=1e-4, final_learning_rate=1e-3,
            schedule_every=5, decay_from_start=True,
        ),
        20,
    )  # fmt: skip
    rates = [float(epochs(step)) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [1e-4 + step * (1e-2 - 1e-4) / 8 for step in range(5)], rtol=1e-5)
    for epoch in (1, 2, 3):
        wanted = 9e-3 * 0.5 * (1 + np.cos(np.pi * epoch / 4)) + 1e-3
        np.testing.assert_allclose(rates[5 * epoch : 5 * epoch + 5], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "warmup", "peak", "final", "wanted"),
    [(20_000, 5000, 1e-4, 8e-5, 9.707e-5), (1000, 200, 3e-5, 1e-5, 2.809e-5)],
)
def test_the_schedule_of_minigpt4_drops_behind_the_warm_up(steps, warmup, peak, final, wanted):
    schedule = make_schedule(
        config(
            schedule="cosine",
            learning_rate=peak,
            warmup_steps=warmup,
            warmup_from=1e-6,
            final_learning_rate=final,
            decay_from_start=True,
        ),  # fmt: skip
        steps,
    )
    assert float(schedule(warmup - 1)) == pytest.approx(1e-6 + (peak - 1e-6) * (warmup - 1) / warmup, rel=1e-5)
    assert float(schedule(warmup)) == pytest.approx(wanted, rel=1e-3)
