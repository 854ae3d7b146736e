"""Experiment and Stage: a run, fully resolved and checked, as frozen dataclasses.

A config file's `get_config(arg)` gives an `ml_collections.ConfigDict` of the same nesting; `mmjax.types.config` turns it
into these classes at once, so that every mistake is found before JAX starts.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from mmjax.data.config import DataConfig, TokenizerConfig
from mmjax.evaluation.config import EvaluationConfig

Rules = tuple[tuple[str, Any], ...]


def check_rules(name: str, rules: Rules) -> None:
    """Raises ValueError for a rule that is no (regular expression, value) pair."""
    for rule in rules:
        if len(rule) != 2 or not isinstance(rule[0], str):
            raise ValueError(f"{name}: a rule is a pair (regular expression over parameter paths, value), got {rule!r}")
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f"{name}: {rule[0]!r} is no regular expression: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What a stage minimises.

    Args:
      name: an entry of `mmjax.systems.objectives.OBJECTIVES`.
      weights: weight of each of its loss terms, by name; a term not named weighs 1.
      label_smoothing: mass spread evenly over all classes in the cross-entropies.
      answer_prior: floor of the prior p(answer | question) counted on the training set; its logarithm is added to the
        answer's logits in training only (logit adjustment, arXiv 2007.07314). 0 = off.
      positives: of BLIP-2's stage 1, which rows of a batch belong together: "pairs", each with itself only; "captions", also
        those with equal captions; "images", those with the same image.
      chunk: text positions of a row whose logits exist at once. Each device sorts its positions, and skips chunks in which
        nothing is learnt: of long rows with short answers small chunks skip more, large ones multiply faster.
      cross_entropy: of language modelling, by what it is computed: "xla", or "tokamax", a kernel for TPUs that never writes the
        logits to memory (`mmjax.objectives.fused`), without label smoothing, answer prior and token accuracy.
    """

    name: str
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    label_smoothing: float = 0.0
    answer_prior: float = 0.0
    positives: str = "pairs"
    chunk: int = 512
    cross_entropy: str = "xla"

    def __post_init__(self):
        for name in ("label_smoothing", "answer_prior"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.positives not in ("pairs", "captions", "images"):
            raise ValueError(f"positives must be 'pairs', 'captions' or 'images', got {self.positives!r}")
        if self.chunk < 1:
            raise ValueError(f"chunk must be 1 or more, got {self.chunk}")
        if self.cross_entropy not in ("xla", "tokamax"):
            raise ValueError(f"cross_entropy must be 'xla' or 'tokamax', got {self.cross_entropy!r}")
        if self.cross_entropy == "tokamax" and (self.name != "language_modelling" or self.label_smoothing or self.answer_prior):
            raise ValueError("cross_entropy='tokamax' is for language_modelling without label_smoothing and answer_prior")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and decay.

    Args:
      learning_rate: peak.
      final_learning_rate: at the last step.
      schedule: "cosine", "linear" or "constant", after the warm-up.
      schedule_every: the decay moves every so many steps, and the warm-up ends with the first of these strides, however far
        it has come: LAVIS, the original code of BLIP-2, does so once an epoch. Needs decay_from_start.
      decay_from_start: the decay counts from the first step, not from the end of the warm-up (LAVIS, MiniGPT-4).
      warmup_steps: steps of linear warm-up, from warmup_from.
      warmup_from: learning rate at the first of them.
      b1, b2, eps, weight_decay: of AdamW.
      clip_norm: global gradient norm above which gradients are scaled down; 0 = off.
      accumulation: micro-batches per step.
      ema: decay of the exponential moving average of the trained weights; 0 = off.
    """

    learning_rate: float
    final_learning_rate: float = 0.0
    schedule: str = "cosine"
    schedule_every: int = 1
    decay_from_start: bool = False
    warmup_steps: int = 0
    warmup_from: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    accumulation: int = 1
    ema: float = 0.0

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule must be 'cosine', 'linear' or 'constant', got {self.schedule!r}")
        for name in ("accumulation", "schedule_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.schedule_every > 1 and not self.decay_from_start:
            raise ValueError(f"schedule_every={self.schedule_every} needs decay_from_start=True")
        for name in ("final_learning_rate", "warmup_steps", "warmup_from", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("b1", "b2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens on a bad step.

    Args:
      skip_non_finite: leave the state as it is when the loss or the gradient norm is not finite.
      spike_factor: also skip when the gradient norm exceeds this multiple of its running mean; 0 = off.
      spike_warmup: steps before spikes are judged.
      stop_after: stop the run, naming the steps, after this many skipped steps in a row.
    """

    skip_non_finite: bool = True
    spike_factor: float = 0.0
    spike_warmup: int = 100
    stop_after: int = 5

    def __post_init__(self):
        if self.stop_after < 1:
            raise ValueError(f"stop_after must be 1 or more, got {self.stop_after}")
        if self.spike_factor < 0 or 0 < self.spike_factor <= 1:
            raise ValueError(f"spike_factor must be 0 (off) or above 1, got {self.spike_factor}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes. 0 = not given: chosen from the devices and the rows by `mmjax.parallel.mesh.resolve`. At most one
    may be −1, which takes all that the other given ones leave."""

    replica: int = 0
    fsdp: int = 0
    tensor: int = 0
    sequence: int = 0

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        if min(sizes) < -1 or sizes.count(-1) > 1:
            raise ValueError(
                "mesh sizes must be 1 or more, 0 (chosen by rule) or, at most one of them, -1 (the rest), "
                f"got {dataclasses.asdict(self)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One named stage of a run.

    Args:
      name: key under `stages`, folder under `checkpoints/`, field of every metrics line.
      steps: optimiser steps.
      objective, data, optimizer, guard, mesh: see their classes.
      trainable: rules path -> bool. What is not trainable keeps its source's values bit for bit.
      lora: rules path -> rank (0 = none) over the weights of linear layers, or {"rank": …, "alpha": …, "rslora": …}, the
        fields of `mmjax.layers.lora.Adapter`.
      lora_alpha: scale of the adapters is alpha / rank; this is the alpha of rules that name none.
      learning_rate: rules path -> multiplier; a list of multipliers gives one per layer of a stack.
      weight_decay: rules path -> multiplier. Without a match: 1 for matrices, 0 for vectors and scalars.
      dtype: rules path -> dtype name of the stored parameters: float32 (also without a match), bfloat16, float16, or, for the
        matrices of frozen linear layers, int8.
      compute_dtype: dtype of the forward pass.
      sharding: rules path -> list of mesh axes (or None) per dimension, or {logical axis: mesh axes}, overriding the
        logical-axis table; {} = whole on every device.
      remat: what the backward pass keeps of each layer beside its input: "none" computes nothing again and keeps all, "full"
        keeps nothing, "dots" all matrix products, "dots_no_batch" those with weights, "attention" queries, keys, values and
        what attention gives, "offload" the same and the layer's input in the host's memory (TPU and GPU; a CPU has no other).
      attention: by which entry of `mmjax.layers.attention.IMPLEMENTATIONS` all of the stage attends: "xla", "splash" (TPU; on a
        CPU it is interpreted, for comparisons) or "cudnn" (GPU); "auto" = each call by the first that can do it.
      log_every: steps between metrics lines.
      evaluate_every: steps between evaluations inside the stage; 0 = none.
      evaluate: names of the evaluations (of `Experiment.evaluations`) to run inside and at the end of the stage.
      evaluate_limit: examples of an evaluation inside the stage (the final one takes all).
    """

    name: str
    steps: int
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    guard: GuardConfig = GuardConfig()
    mesh: MeshConfig = MeshConfig()
    trainable: Rules = ((".*", True),)
    lora: Rules = ()
    lora_alpha: float = 16.0
    learning_rate: Rules = ()
    weight_decay: Rules = ()
    dtype: Rules = ()
    compute_dtype: str = "float32"
    sharding: Rules = ()
    remat: str = "none"
    attention: str = "auto"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate: tuple[str, ...] = ()
    evaluate_limit: int = 200

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")
        if self.log_every < 1:
            raise ValueError(f"log_every must be 1 or more, got {self.log_every}")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype must be 'float32' or 'bfloat16', got {self.compute_dtype!r}")
        if self.attention not in ("auto", "splash", "cudnn", "xla"):
            raise ValueError(f"attention must be 'auto', 'splash', 'cudnn' or 'xla', got {self.attention!r}")
        for name in ("trainable", "lora", "learning_rate", "weight_decay", "dtype", "sharding"):
            check_rules(name, getattr(self, name))
        if self.data.rows % self.optimizer.accumulation:
            raise ValueError(
                f"data.rows={self.data.rows} is not divisible by optimizer.accumulation={self.optimizer.accumulation}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written.

    Args:
      every_steps, every_seconds: whichever comes first; 0 = never by that rule. A stage's last step is always saved.
      keep: checkpoints kept per stage, besides each stage's last.
    """

    every_steps: int = 0
    every_seconds: float = 60.0
    keep: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where metrics go besides `metrics.jsonl`.

    Args:
      tensorboard: write TensorBoard events into the workdir.
      wandb_project: Weights & Biases project; "" = off.
      profile_stage, profile_start, profile_steps: a `jax.profiler` window; profile_steps 0 = off.
      hang_seconds: dump all stacks and exit when no step ends for this long; 0 = off.
      peer_seconds: the same when another process of the run is silent for this long; 0 = off.
    """

    tensorboard: bool = True
    wandb_project: str = ""
    profile_stage: str = ""
    profile_start: int = 10
    profile_steps: int = 0
    hang_seconds: float = 1800.0
    peer_seconds: float = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run.

    Args:
      name: "<system>/<recipe>".
      seed: of initialisation, data order and dropout.
      data: paths that several stages refer to, so that a flag need not name each of them: `--config.data.path=…`. Nothing reads
        it but the config file.
      parts: the config of every part, by part name ("encoders.image", "connectors.image", "llm"): "family" and the
        fields of that family's config dataclass; "source" names what its weights are read from, a run's workdir, a directory
        in Hugging Face layout or a file, or a list of them, of which each gives what those before it lack; "fresh" is a
        regular expression of parameter paths that are drawn all the same.
      tokenizers: see TokenizerConfig.
      stages: in order.
      evaluations: by name.
    """

    name: str
    seed: int = 0
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    parts: dict[str, dict[str, Any]]
    tokenizers: TokenizerConfig
    stages: dict[str, Stage]
    evaluations: dict[str, EvaluationConfig] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages names no stage")
        for name, stage in self.stages.items():
            for evaluation in stage.evaluate:
                if evaluation not in self.evaluations:
                    raise ValueError(
                        f"stages.{name}.evaluate names {evaluation!r}; evaluations has {', '.join(self.evaluations) or 'none'}"
                    )
