"""Matrices of frozen linear layers in int8, by qwix: eight bits a weight, and one scale for each output.

    w[i, o] ≈ scale[o] · q[i, o]   with   scale[o] = max |w[:, o]| / 127   so that   x w ≈ (x q) · scale     (arXiv 2208.07339)

The scale stands behind the product, so that no layer ever makes a floating-point copy of its weights of its own: the
multiplication reads the bytes. A quantised matrix is a `qwix.QArray`, a tree of two arrays; "int8" is its dtype in rules.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mmjax.layers.parameters import ParameterSpec
from mmjax.layers.product import product
from mmjax.types import UserError

INT8 = jnp.dtype("int8")


def quantisable(path: str, spec: ParameterSpec) -> bool:
    """Whether int8 is for this parameter: the matrix of a linear layer that gives no logits."""
    return path.endswith(".kernel") and len(spec.unstacked_shape) == 2 and "vocab" not in spec.axes


def quantise(matrix: Float[Array, "*layers inputs outputs"]) -> Any:
    """The matrix in int8, its scales in float32, one for each output of each layer.

    Raises:
      UserError: qwix is missing.
    """
    channels = [axis for axis in range(matrix.ndim) if axis != matrix.ndim - 2]
    return _qwix().quantize(matrix.astype(jnp.float32), INT8, channelwise_axes=channels)


def quantised_shape(shape: tuple[int, ...], sharding: NamedSharding | None = None) -> Any:
    """The shapes of a quantised matrix. Its scales are split as its outputs are.

    Raises:
      UserError: qwix is missing.
    """
    *layers, _, outputs = shape
    scale = None
    if sharding is not None:
        spec = [*sharding.spec, *(None,) * (len(shape) - len(sharding.spec))]
        scale = NamedSharding(sharding.mesh, PartitionSpec(*spec[:-2], None, spec[-1]))
    return _qwix().QArray(
        jax.ShapeDtypeStruct(shape, INT8, sharding=sharding),
        jax.ShapeDtypeStruct((*layers, 1, outputs), jnp.float32, sharding=scale),
        qtype=INT8,
    )


def is_quantised(value: Any) -> TypeGuard[Any]:
    """Whether a parameter's value is a quantised matrix, its shapes, or anything else in its form."""
    return hasattr(value, "qvalue")


def multiply(x: Float[Array, "*batch inputs"], matrix: Any) -> Float[Array, "*batch outputs"]:
    """x times a matrix of one layer, quantised or not, in the dtype of x."""
    if not is_quantised(matrix):
        return product(x, matrix.astype(x.dtype))
    # int8 is exact in bfloat16.
    return (x @ matrix.qvalue.astype(x.dtype)) * matrix.scale[0].astype(x.dtype)


def _qwix() -> Any:
    # A second or two to import, and nobody else needs it.
    try:
        import qwix
    except ImportError:
        raise UserError("parameters in int8 need qwix: pip install 'mmjax[quant]'") from None
    return qwix
