"""Loading takes the memory of the arrays and next to nothing beside it, on one device and on eight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mmjax.weights.safetensors import Tensor, save_directory

ROOT = Path(__file__).resolve().parents[2]
WIDTH, FFN, LAYERS, VOCAB = 2048, 5504, 10, 8000  # 1.08 GB in bfloat16

# Anonymous memory (RssAnon, not the pages of the mapped files) is sampled while the checkpoint loads.
MEASURE = """
import json, sys, threading
import mmjax, mmjax.interop.pretrained
from mmjax.parallel.mesh import make_mesh

def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])

sizes = json.loads(sys.argv[2])
mesh = make_mesh(sizes) if sizes else None
before = peak = anonymous()
done = threading.Event()

def sample():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

thread = threading.Thread(target=sample)
thread.start()
model = mmjax.from_pretrained(sys.argv[1], mesh=mesh)
done.set()
thread.join()
arrays = sum(shard.data.nbytes for value in model.parameters.values() for shard in value.addressable_shards)
loaded = sum(value.nbytes for value in model.parameters.values())
print(json.dumps({"extra": peak - before - arrays, "arrays": arrays, "loaded": loaded, "grown": anonymous() - before}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random LLaMA, written shard by shard."""
    directory = tmp_path_factory.mktemp("checkpoint")
    draw = np.random.default_rng(0)

    def tensor(*shape):
        return Tensor(
            shape, np.dtype(ml_dtypes.bfloat16), lambda: draw.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        )

    shapes = {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
    shapes |= {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH), "mlp.down_proj": (WIDTH, FFN)}
    tensors = {f"model.layers.{i}.{name}.weight": tensor(*shape) for i in range(LAYERS) for name, shape in shapes.items()}
    ends = {"model.embed_tokens": (VOCAB, WIDTH), "lm_head": (VOCAB, WIDTH), "model.norm": (WIDTH,)}
    tensors |= {f"{name}.weight": tensor(*shape) for name, shape in ends.items()}
    save_directory(directory, tensors, shard_bytes=300_000_000)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 16, "vocab_size": VOCAB,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    yield directory
    for file in directory.glob("*.safetensors"):
        file.unlink()


@pytest.mark.heavy
@pytest.mark.parametrize("mesh", [{}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_memory_beyond_the_arrays_is_a_small_part_of_the_checkpoint(checkpoint, mesh):
    arguments = [sys.executable, "-c", MEASURE, str(checkpoint), json.dumps(mesh)]
    done = subprocess.run(arguments, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=300, check=True)
    measured = json.loads(done.stdout)
    assert measured["loaded"] > 1e9
    assert measured["grown"] > 0.9 * measured["arrays"], "the measurement does not see the arrays"
    assert measured["extra"] < 0.25 * measured["loaded"], measured
