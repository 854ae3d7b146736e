"""Relative position bias (T5, arXiv 1910.10683, section 2.1): attention scores know how far apart two tokens stand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.linear import Embedding
from mmjax.layers.parameters import normal


def distance_buckets(buckets: int, max_distance: int) -> Int[np.ndarray, "distances"]:
    """The bucket of every distance from 0 to max_distance: one each up to buckets / 2, then logarithmically wider ones.

    Bucket exact + k begins where exact · (max_distance / exact) ** (k / wide) does. Written as a comparison of whole numbers:
    in float32 the logarithms of such boundaries come out on either side of them.
    """
    exact = buckets // 2
    wide = buckets - exact

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        passed = (distance**wide * exact**k >= max_distance**k * exact**wide for k in range(1, wide))
        return exact + sum(passed)

    return np.array([bucket(distance) for distance in range(max_distance + 1)], np.int32)


class RelativePositionBias(nnx.Module):
    """A learned number per head and bucket of distance, which one stack of layers shares.

    Args:
      width: of the model, by which the table is initialised.
      heads: of the attention.
      buckets: rows of the table; where a token also sees what follows it, half of them are for each direction.
      max_distance: from here on, all distances share the last bucket.
      bidirectional: whether tokens see what follows them.
    """

    def __init__(self, width: int, heads: int, buckets: int, max_distance: int, *, bidirectional: bool):
        self.values = Embedding(buckets, heads, (None, "heads"), init=normal(width**-0.5))
        self.buckets = buckets // 2 if bidirectional else buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def __call__(self, queries: int, keys: int, offset: Int[Array, ""] | int = 0) -> Float[Array, "1 heads t s"]:
        """What is added to the scores, the same for every row of a batch.

        Distances are those of slots. Tokens of a segment stand in consecutive slots, so that wherever padding or other segments
        of the row stand, these are the distances of the tokens.

        Args:
          queries, keys: numbers of slots, t and s.
          offset: slot of the first query among the keys.
        """
        distance = jnp.arange(keys)[None, :] - (offset + jnp.arange(queries)[:, None])
        reach = jnp.abs(distance) if self.bidirectional else jnp.maximum(-distance, 0)
        index = jnp.asarray(distance_buckets(self.buckets, self.max_distance))[jnp.minimum(reach, self.max_distance)]
        if self.bidirectional:
            index = index + jnp.where(distance > 0, self.buckets, 0)
        return jnp.transpose(self.values(index), (2, 0, 1))[None]
