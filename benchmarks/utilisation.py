"""How much of an accelerator a stage uses: its compiled step on random weights and packed rows, against the hardware's limit.

    PYTHONPATH=. python benchmarks/utilisation.py --peak=989 [--config=experiments/llava/finetune_lora.py] [--rows=4]

Weights are drawn, so that nothing has to be downloaded; rows are full of conversations of one picture each. Counted are the
matrix FLOPs of the step as it is traced, frozen parts with their forward pass alone (`mmjax.training.parts.step_flops`); what
is recomputed in the backward pass (remat) is hardware's work and counted apart from the useful one, which is that of the same
stage without remat. `--peak` is the chips' limit in TFLOP/s, all together: 989 for one H100 or H200 in bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np

from launch.command import load_config
from mmjax.systems.objectives import make_objective
from mmjax.training.assembly import assemble, fill, first_state
from mmjax.training.parts import step_flops
from mmjax.training.stage import DataConfig, Experiment, Stage
from mmjax.training.step import make_train_step
from mmjax.types import Batch, Media, Text
from mmjax.types.config import from_config


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="experiments/llava/finetune_lora.py", help="of an experiment with images")
    parser.add_argument("--stage", default="", help="the last one by default")
    parser.add_argument("--peak", type=float, required=True, help="TFLOP/s of all chips together")
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    return parser.parse_args()


def packed_batch(data: DataConfig, vocab: int) -> Batch:
    """Rows full of segments: a picture's soft tokens, then as much text as leaves every media slot a segment."""
    numbers, size = np.random.default_rng(0), data.image_size
    b, t, n, k = data.rows, data.length, data.media, data.soft_tokens
    number = np.minimum(np.arange(t) * n // t, n - 1)  # of each position's segment
    start = np.searchsorted(number, np.arange(n))
    place = np.arange(t) - start[number]
    features = np.where(place < k, number * k + place, -1)
    tokens = numbers.integers(0, vocab, (b, t), np.int32)

    def rows(values: np.ndarray, dtype: Any = np.int32) -> np.ndarray:
        return np.broadcast_to(values.astype(dtype), (b, t)).copy()

    text = Text(tokens, np.roll(tokens, -1, 1), rows(place >= k, np.float32), rows(place), rows(number + 1))
    pixels = numbers.integers(0, 256, (b, n, size, size, 3), np.uint8)
    media = Media(pixels, np.ones((b, n), bool), np.zeros((b, n), np.int32))
    return Batch(text=text, media={"image": media}, feature_index=rows(features))


def flops(experiment: Experiment, stage: Stage, batch: Batch) -> float:
    """Matrix FLOPs of one step."""
    assembly, objective = assemble(experiment, stage), make_objective(stage.objective.name, stage.objective.weights)
    step = make_train_step(assembly.definition, stage, objective, assembly.optimizer, assembly.state, assembly.frozen)
    counted = step_flops(assembly.definition, stage, objective, step, assembly.state, assembly.frozen, batch)
    return float(sum(forward + backward for forward, backward in counted.values()))


def main() -> None:
    options = arguments()
    config = load_config(options.config)
    experiment = from_config(Experiment, config, options.config)
    drawn = {name: {key: value for key, value in part.items() if key != "source"} for name, part in experiment.parts.items()}
    experiment = dataclasses.replace(experiment, parts=drawn)
    stage = experiment.stages[options.stage or list(experiment.stages)[-1]]
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, rows=options.rows))
    batch = packed_batch(stage.data, drawn["llm"]["vocab"])
    done, useful = (flops(experiment, each, batch) for each in (stage, dataclasses.replace(stage, remat="none")))

    assembly, objective = assemble(experiment, stage), make_objective(stage.objective.name, stage.objective.weights)
    step = make_train_step(assembly.definition, stage, objective, assembly.optimizer, assembly.state, assembly.frozen)
    frozen, state = fill(assembly, experiment, {}, list(assembly.frozen)), first_state(assembly, experiment, {})
    state, metrics = step(state, frozen, batch)
    jax.block_until_ready(metrics)
    compilations, seconds = step._cache_size(), []
    for _ in range(options.steps):
        started = time.perf_counter()
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    assert step._cache_size() == compilations, "a step was compiled after the warm-up"

    median, limit = statistics.median(seconds), options.peak * 1e12
    tokens = options.rows * stage.data.length
    print(
        f"{experiment.name}, stage {stage.name}: {options.rows} rows of {stage.data.length} on {jax.devices()[0].device_kind}"
    )
    print(f"{median:.3f} s a step ({min(seconds):.3f} to {max(seconds):.3f}), {tokens / median:,.0f} tokens/s")
    for what, count in (("useful", useful), ("with what remat repeats", done)):
        print(f"{count / 1e12:,.2f} TFLOP {what}: {count / median / limit:.1%} of {options.peak:g} TFLOP/s")


if __name__ == "__main__":
    main()
