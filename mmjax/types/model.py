"""The Model: what `from_pretrained` gives and everything else takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax import Array

    from mmjax.layers.parameters import Definition


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model with its weights.

    Args:
      definition: structure and parameter specs.
      parameters: an array for each path of the definition.
      processor: tokenizers and sizes (`mmjax.data.processor.Processor`); None = the model comes without tokenizers.
      config: plain values: "parts" (family and sizes of every part), and where they are known "architecture" (its Hugging
        Face class), "hf_config" and "source".
      cache: functions compiled for this model, by whoever compiled them.
    """

    definition: Definition
    parameters: Mapping[str, Array]
    processor: Any
    config: Mapping[str, Any]
    cache: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)
