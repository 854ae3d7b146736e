"""Room for the placeholder of soft tokens, to which transformers' classes give an id and so a row of the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from mmjax.data.encoder_processor import EncoderProcessor
from mmjax.data.processor import Processor
from mmjax.interop.processors import PLACEHOLDERS, spare_tokens
from mmjax.layers.parameters import Parameters, ParameterSpec
from mmjax.llms.head import padded_vocab

Parts = dict[str, dict]
Specs = Mapping[str, ParameterSpec]


def with_room(parts: Parts, processor: Processor | EncoderProcessor | None) -> Parts:
    """The parts with one more row in the vocabulary, where the tokenizer fills it and has no token to spare (Vicuna's)."""
    if not isinstance(processor, Processor) or not {"llm", "connectors.image"} <= set(parts):
        return parts
    llm, known = parts["llm"], processor.llm.get_vocab()
    if len(processor.llm) < llm["vocab"] or spare_tokens(processor.llm) or set(PLACEHOLDERS.values()) & set(known):
        return parts
    return {**parts, "llm": {**llm, "vocab": llm["vocab"] + 1}}


def grow(parameters: Parameters, specs: Specs, vocab: int) -> tuple[Parameters, dict[str, ParameterSpec]]:
    """Adds the last of `vocab` rows to the language model's embedding and head: the mean of the others, as transformers does.

    Nobody reads it, since soft tokens stand in its place, and as a mean it is never an answer's likeliest token.

    Returns:
      The parameters and their specs.
    """
    grown, wider = dict(parameters), dict(specs)
    for path, spec in specs.items():
        if path in parameters and path.startswith("llm.") and "vocab" in spec.axes:
            axis = spec.axes.index("vocab")
            grown[path] = _with_mean(parameters[path], axis, vocab)
            wider[path] = dataclasses.replace(spec, shape=grown[path].shape)
    return grown, wider


def _with_mean(value: Array, axis: int, vocab: int) -> Array:
    rows = jnp.moveaxis(value, axis, 0)
    mean = rows[: vocab - 1].astype(jnp.float32).mean(0).astype(rows.dtype)
    rows = jnp.pad(rows, ((0, padded_vocab(vocab) - len(rows)), *((0, 0),) * (rows.ndim - 1)))
    return jnp.moveaxis(rows.at[vocab - 1].set(mean), 0, axis)
