"""What int8 costs a language model: its logits with rounded matrices against those of its own, and their bytes.

    PYTHONPATH=. python benchmarks/int8.py [--width=1024] [--layers=16] [--seeds=3]

Weights are drawn, by fan-in, so that hidden states and logits are of order one; trained weights have outliers that these lack.
Targets are drawn from the float32 model itself, whose perplexity is therefore the lowest that there is. bfloat16, which every
published run stores its frozen parts in, is the yardstick: all three compute in float32, so that only storage differs.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers.parameters import Definition, Parameters, define
from mmjax.layers.quantised import quantisable, quantise
from mmjax.llms.llama import Llama, LlamaConfig

ROWS, LENGTH, VOCAB = 4, 256, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="models that are drawn")
    options = parser.parse_args()
    width, layers = options.width, options.layers
    config = LlamaConfig(vocab=VOCAB, width=width, layers=layers, heads=width // 64, kv_heads=width // 64, ffn=width * 11 // 4)
    definition = define(Llama(config))
    figures = [compare(definition, seed) for seed in range(options.seeds)]
    print(f"LLaMA of width {width} with {layers} layers; mean over {options.seeds} models, {ROWS * LENGTH} tokens each")
    for name in figures[0]:
        values = {column: np.mean([each[name][column] for each in figures]) for column in figures[0][name]}
        print(f"{name:9}" + "".join(f"  {column} {value:.4g}" for column, value in values.items()))


def compare(definition: Definition, seed: int) -> dict[str, dict[str, float]]:
    """Of each way to store the matrices: size, distance of the logits, perplexity."""
    keys = jax.random.split(jax.random.key(seed), 3)
    whole = jax.jit(definition.initialise)(keys[0])
    tokens = jax.random.randint(keys[1], (ROWS, LENGTH), 0, VOCAB)
    expected = logits(definition, whole, tokens)
    targets = jax.random.categorical(keys[2], expected)
    stored = {"float32": whole, "bfloat16": rounded(definition, whole), "int8": in_int8(definition, whole)}
    return {name: measure(definition, parameters, tokens, targets, expected) for name, parameters in stored.items()}


def rounded(definition: Definition, parameters: Parameters) -> Parameters:
    """With the matrices that could be in int8 in bfloat16."""
    specs = definition.specs
    return {path: x.astype(jnp.bfloat16) if quantisable(path, specs[path]) else x for path, x in parameters.items()}


def in_int8(definition: Definition, parameters: Parameters) -> Parameters:
    """With all matrices in int8 that may be."""
    return {path: quantise(x) if quantisable(path, definition.specs[path]) else x for path, x in parameters.items()}


def logits(definition: Definition, parameters: Parameters, tokens: jax.Array) -> jax.Array:
    @jax.jit
    def run(parameters: Parameters, tokens: jax.Array) -> jax.Array:
        llm = definition.bind(parameters)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return llm.logits(llm(llm.embed(tokens), positions, jnp.ones_like(tokens))[0])

    return run(parameters, tokens)


def measure(definition: Definition, parameters: Parameters, tokens: jax.Array, targets: jax.Array, expected: jax.Array):
    scores = logits(definition, parameters, tokens)
    log_p, log_q = (jax.nn.log_softmax(each) for each in (expected, scores))
    matrices = [parameters[path] for path, spec in definition.specs.items() if quantisable(path, spec)]
    loss = -jnp.take_along_axis(log_q, targets[..., None], -1).mean()
    return {
        "MB": sum(leaf.nbytes for leaf in jax.tree.leaves(matrices)) / 1e6,
        "logits' deviation": float(expected.std()),
        "error": float(jnp.sqrt(jnp.mean((scores - expected) ** 2))),
        "KL": float((jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
        "perplexity": float(jnp.exp(loss)),
        "same argmax %": 100 * float((scores.argmax(-1) == expected.argmax(-1)).mean()),
    }


if __name__ == "__main__":
    main()
