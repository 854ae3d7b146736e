"""The train step with its kernels: for TPUs that are not there, by their own compiler, and interpreted on CPUs."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from experiments.llava.finetune import get_config
from mmjax.layers import attention
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.topology import find_devices, parse_topology
from mmjax.systems.objectives import make_objective
from mmjax.training.assembly import assemble, first_state
from mmjax.training.plan.program import batch_shapes
from mmjax.training.stage import Experiment
from mmjax.training.step import lower_step, make_train_step
from mmjax.types import UserError
from mmjax.types.config import from_config

KERNEL = "tpu_custom_call"
PLAIN, MASKED, PASSES = "fmhaSoftmax", "fmhaScaleBiasSoftmax", [("", 2), ("Backward", 1)]  # as cuDNN's calls are named


def llava(patches, length, **fields):
    """LLaVA with two layers each in its image encoder, which is trained too, and in its language model."""
    config = get_config("tiny")
    config.parts.encoders.image.update(image_size=12 * patches)
    config.parts.llm.update(heads=4, kv_heads=2, head_dim=64)
    stage = config.stages.finetune
    stage.data.update(image_size=12 * patches, soft_tokens=patches**2, length=length, rows=8)
    stage.update({"trainable": [[".*", True]], **fields})
    return from_config(Experiment, config)


def put_together(experiment, devices, **sizes):
    stage = experiment.stages["finetune"]
    made = assemble(experiment, stage, make_mesh(sizes, devices))
    objective = make_objective(stage.objective.name, {}, chunk=stage.objective.chunk)
    step = make_train_step(made.definition, stage, objective, made.optimizer, made.state, made.frozen)
    return made, step


def lowered(topology, sizes):
    experiment = llava(23, 1024, compute_dtype="bfloat16", remat="full")
    made, step = put_together(experiment, find_devices(parse_topology(topology)), **sizes)
    return lower_step(step, made.state, made.frozen, batch_shapes(made.stage))


@pytest.mark.heavy
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_encoder_and_language_model_attend_by_the_kernel_on_every_tpu(topology):
    text = lowered(topology, {"fsdp": 2, "sequence": 2}).as_text()
    # Of both stacks: forward, again for the backward pass, and that in one kernel or two.
    assert text.count("splash_mha_fwd") >= 4 and text.count("splash_mha_dkv") >= 2
    assert text.count(KERNEL) == (6 if topology.startswith("v6e") else 8)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ("v5e:2x2", {"fsdp": 2, "tensor": 2}),
        ("v5e:2x2", {"fsdp": 2, "sequence": 2}),
        ("v5p:2x2x1", {"fsdp": 4}),
        ("v6e:2x2", {"fsdp": 2, "sequence": 2}),
    ],
)
def test_the_tpu_compiler_takes_the_step(topology, sizes):
    compiled = lowered(topology, sizes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes > 0
    if topology.startswith("v5e"):  # of other kinds it cannot print the program
        assert compiled.as_text().count(f'"{KERNEL}"') >= 8


@pytest.fixture
def gpus(monkeypatch):
    """GPUs that are not there: what JAX asks their driver is answered for Hopper and cuDNN 9.10."""
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda least: True)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda capability: False)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("patches", "length", "sizes", "kernels"),
    [
        (23, 1024, {"fsdp": 4}, [PLAIN, MASKED]),
        (23, 1024, {"fsdp": 2, "tensor": 2}, [PLAIN, MASKED]),
        (23, 1024, {"fsdp": 2, "sequence": 2}, [PLAIN, MASKED]),
        (23, 1030, {"fsdp": 2, "sequence": 2}, [PLAIN]),  # each device has 515 queries of a row
        (22, 1024, {"fsdp": 4}, [MASKED]),  # a picture has 485 positions
    ],
)
def test_the_packed_step_is_made_for_gpus(patches, length, sizes, kernels):
    """From the same config, with cuDNN's kernels in each stack whose lengths they take: forward, again, and backward."""
    made, step = put_together(llava(patches, length, compute_dtype="bfloat16", remat="full"), jax.devices()[:4], **sizes)
    for_cuda = SimpleNamespace(lower=lambda *shapes: step.trace(*shapes).lower(lowering_platforms=("cuda",)))
    text = lower_step(for_cuda, made.state, made.frozen, batch_shapes(made.stage)).as_text()
    assert Counter(re.findall(r"@__cudnn\$(\w+)\(", text)) == {f"{name}{end}": n for name in kernels for end, n in PASSES}


def random_batch(stage):
    """Packed rows of two segments, a picture in the first, and padding."""
    draw, t = np.random.default_rng(0), stage.data.length
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), batch_shapes(stage))
    text, image = batch.text, batch.media["image"]
    text.segments[:] = np.repeat([1, 2, 0], [16, t - 22, 6])
    text.positions[:] = np.concatenate([np.arange(16), np.arange(t - 22), np.zeros(6, int)])
    text.tokens[:], text.targets[:] = draw.integers(1, 128, (2, *text.tokens.shape))
    text.loss_weights[:] = text.segments > 0
    image.values[:], image.mask[:] = draw.integers(0, 256, image.values.shape), True
    batch.feature_index[:] = np.where((np.arange(t) > 2) & (np.arange(t) < 12), np.arange(t) - 3, -1)
    return batch


def one_step(attention, **sizes):
    """Loss, gradient norm and new parameters of a step."""
    experiment = llava(3, 40, attention=attention)
    made, step = put_together(experiment, jax.devices()[: int(np.prod(list(sizes.values())))], **sizes)
    state, metrics = step(first_state(made, experiment, {}), {}, random_batch(made.stage))
    return jax.device_get((metrics["loss"], metrics["gradient_norm"], state.trainable))


@pytest.mark.heavy
def test_a_step_by_the_kernel_is_that_by_xla():
    explicit, kernel = one_step("xla", fsdp=1), one_step("splash", fsdp=2, tensor=2, sequence=2)
    np.testing.assert_allclose(kernel[0], explicit[0], rtol=1e-5)
    np.testing.assert_allclose(kernel[1], explicit[1], rtol=1e-4)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5), kernel[2], explicit[2])


def test_a_kernel_that_is_not_for_this_platform_is_refused_before_anything_compiles():
    experiment = llava(3, 40, attention="cudnn")
    made, step = put_together(experiment, jax.devices()[:1])
    with pytest.raises(UserError, match=r"attention='cudnn' runs on gpu, not on cpu; set .*attention=auto"):
        lower_step(step, made.state, made.frozen, batch_shapes(made.stage))


def test_an_unknown_attention_is_refused():
    with pytest.raises(UserError, match="attention must be 'auto', 'splash', 'cudnn' or 'xla', got 'flash'"):
        llava(3, 40, attention="flash")
