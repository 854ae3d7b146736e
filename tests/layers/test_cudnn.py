"""cuDNN's attention on a GPU against XLA's, values and gradients. The tests run on CPU, so this one starts a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from mmjax.layers.attention import Call, Mask, attend, attention_by, choose

draw = np.random.default_rng(0)
def drawn(*shape): return jnp.asarray(draw.normal(size=shape), jnp.bfloat16)
segments = jnp.asarray(np.repeat([[1, 2, 0]], [100, 120, 36], axis=1).repeat(2, 0))
read = (segments > 0)[..., None, None]
for mask in (None, Mask(segments, segments), Mask(segments, segments, causal=True), Mask(segments, segments, 0, 50, True)):
    arrays = drawn(2, 256, 4, 64), drawn(2, 256, 2, 64), drawn(2, 256, 2, 64)
    upstream = drawn(2, 256, 4, 64)
    assert choose(Call(*arrays, mask, 0.125, None, 0.0, None)) == "cudnn"
    def run(name):
        def loss(*arrays):
            with attention_by(name):
                output = jnp.where(read, attend(*arrays, mask), 0)
            return (output * upstream).astype(jnp.float32).sum(), output
        (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
        return jax.device_get((output, *gradients))
    for ours, theirs in zip(run("cudnn"), run("xla")):
        difference = np.abs(ours.astype(np.float32) - theirs.astype(np.float32)).max()
        assert np.isfinite(ours.astype(np.float32)).all() and difference < 0.03, difference
print("equal")
"""


@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="needs an NVIDIA GPU and mmjax[cuda]")
def test_cudnn_is_xla_on_packed_rows():
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip().endswith("equal"), done.stderr
