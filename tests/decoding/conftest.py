"""A tiny OPT with the weights of a random `transformers` model, behind the interface of a system."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from mmjax.decoding.search import Searcher
from mmjax.layers.parameters import define
from mmjax.llms.opt import OPT, OPTConfig
from mmjax.types import Batch, Text
from tests.decoding.world import make_model

SIZES = dict(vocab=40, width=16, layers=2, heads=2, ffn=32, max_positions=64)


class TextSystem(nnx.Module):
    """The least that decoding asks of a system."""

    def __init__(self):
        self.llm = OPT(OPTConfig(**SIZES))

    def begin(self, batch):
        return self.llm.embed(batch.text.tokens), {}

    def hidden(self, batch):
        text = batch.text
        return self.llm(self.begin(batch)[0], text.positions, text.segments)[0]


def make_reference(seed: int):
    """A random OPT whose logits are of order one, so that no two hypotheses tie."""
    torch.manual_seed(seed)
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, max_position_embeddings=64,
        word_embed_proj_dim=16, init_std=0.5, dropout=0.0, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config).eval()


def convert(model) -> dict[str, jax.Array]:
    """Its weights under our paths."""
    weights = {name.removeprefix("model.decoder."): value.numpy() for name, value in model.state_dict().items()}
    table = np.zeros((128, 16), np.float32)
    table[:40] = weights["embed_tokens.weight"]
    ours = {
        "token_embedding.table": table,
        "position_embedding.table": weights["embed_positions.weight"],
        "norm.scale": weights["final_layer_norm.weight"],
        "norm.bias": weights["final_layer_norm.bias"],
    }
    names = {
        "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj", "mlp.up": "fc1", "mlp.down": "fc2",
        "attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm",
    }  # fmt: skip
    for name, theirs in names.items():
        stacked = [np.stack([weights[f"layers.{layer}.{theirs}.{kind}"] for layer in range(2)]) for kind in ("weight", "bias")]
        norm = name.endswith("norm")
        ours[f"layers.{name}.{'scale' if norm else 'kernel'}"] = stacked[0] if norm else stacked[0].transpose(0, 2, 1)
        ours[f"layers.{name}.bias"] = stacked[1]
    return {f"llm.{path}": jnp.asarray(value) for path, value in ours.items()}


def prompts(*rows: list[int], length: int = 8) -> Batch:
    """A batch of prompts, padded on the left."""
    tokens, segments, positions = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        segments[i, length - len(row) :] = 1
        positions[i, length - len(row) :] = np.arange(len(row))
    return Batch(text=Text(tokens, np.zeros_like(tokens), np.zeros(tokens.shape, np.float32), positions, segments))


@pytest.fixture(scope="session")
def toy():
    """A reference model, its twin of ours, and the twin's compiled searches."""
    reference = make_reference(0)
    definition = define(TextSystem())

    @jax.jit
    def forward(parameters, batch):
        module = definition.bind(parameters)
        return module.llm.logits(module.hidden(batch))

    return types.SimpleNamespace(
        reference=reference,
        parameters=convert(reference),
        definition=definition,
        searcher=Searcher(definition.bind),
        prompts=prompts,
        forward=forward,
    )


@pytest.fixture(scope="session")
def model():
    """A tiny BLIP-2."""
    return make_model()
