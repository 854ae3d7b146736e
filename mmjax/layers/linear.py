"""Linear maps and embeddings. Both compute in the dtype of what they are given; their parameters are cast to it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.parameters import Initialiser, fan_in_normal, fan_in_uniform, normal, parameter, zeros
from mmjax.layers.quantised import multiply
from mmjax.parallel.rows import gather_rows


class Linear(nnx.Module):
    """y = x W (+ b) (+ (α/r) x A B with a LoRA adapter, arXiv 2106.09685; see `mmjax.layers.lora`).

    Args:
      inputs, outputs: widths.
      axes: logical axes of W [inputs, outputs].
      bias: whether there is a b.
      init: of W.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        axes: tuple[str | None, str | None] = ("embed", "embed"),
        *,
        bias: bool = True,
        init: Initialiser | None = None,
    ):
        self.kernel = parameter((inputs, outputs), axes, init or fan_in_normal)
        self.bias = parameter((outputs,), (axes[1],), zeros) if bias else None
        self.lora_a: nnx.Param | None = None
        self.lora_b: nnx.Param | None = None
        self.lora_scale = 1.0

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        y = multiply(x, self.kernel[...])
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            y = y + self.lora_scale * ((x @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype))
        return y

    @property
    def matrix(self) -> Float[Array, "*layers inputs outputs"]:
        """W with its adapter added, for a caller that multiplies by itself."""
        kernel = self.kernel[...]
        if self.lora_a is None or self.lora_b is None:
            return kernel
        return kernel + (self.lora_scale * (self.lora_a[...] @ self.lora_b[...])).astype(kernel.dtype)

    def add_lora(self, rank: int, scale: float) -> None:
        """Adds a fresh adapter: A uniform by fan-in, B zero, so that it changes nothing yet."""
        *layers, inputs, outputs = self.kernel.get_value().shape
        *layer_axes, input_axis, output_axis = self.kernel.axes
        # The attributes were None, which NNX took for static; `nnx.data` says that they hold parameters now.
        self.lora_a = nnx.data(parameter((*layers, inputs, rank), (*layer_axes, input_axis, None), fan_in_uniform))
        self.lora_b = nnx.data(parameter((*layers, rank, outputs), (*layer_axes, None, output_axis), zeros))
        self.lora_scale = scale


class Embedding(nnx.Module):
    """A table of vectors, looked up by id.

    Args:
      rows, width: its shape.
      axes: its logical axes.
      init: of the table; its default deviates by width^−½, OPT's 0.02 at OPT's width, so that tied logits begin near one.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        axes: tuple[str | None, str | None] = ("vocab", "embed"),
        *,
        init: Initialiser | None = None,
    ):
        self.table = parameter((rows, width), axes, init or normal(width**-0.5))

    def __call__(self, ids: Int[Array, "*batch"], dtype: Any = None) -> Float[Array, "*batch width"]:
        # Ids are checked on the host: an id outside the table would be clamped here without a word.
        table = self.table[...] if dtype is None else self.table[...].astype(dtype)
        return jnp.take(gather_rows(table), ids, axis=0, mode="clip")
