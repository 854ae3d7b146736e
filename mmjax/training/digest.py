"""Digests of arrays: 64 bits per leaf that see every flipped bit and every exchange of two values.

Sums of integers do not depend on their order, so a digest is the same on any mesh and any number of devices.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32-bit words in which every input bit reaches every output bit (MurmurHash3's finaliser)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def as_words(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of x as 32-bit words, one per element (two for 64-bit elements, in a trailing axis)."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_ or x.dtype.name in ("int2", "uint2", "int4", "uint4"):
        x = x.astype(jnp.int8)
    return jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)


@jax.jit
def array_digest(x: Shaped[Array, "..."]) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """Two 32-bit sums over all elements of a scrambled (value, position).

    For a fixed position the summand is a bijection of the value, so that a change of one element always changes the
    sum; other changes go unseen with a chance of about 2^-64. Positions are folded in axis by axis rather than as one flat
    index: nothing is reshaped, hence nothing gathered, and more than 2^32 elements are no special case.

    Args:
      x: any array, sharded in any way.

    Returns:
      the two halves of the digest, replicated.
    """
    words = as_words(x)
    place = jnp.uint32(words.ndim)
    for size in words.shape:
        place = mix(place[..., None] * jnp.uint32(31) + jnp.arange(1, size + 1, dtype=jnp.uint32))
    scrambled = mix(words ^ place)
    total = functools.partial(jnp.sum, dtype=jnp.uint32)
    return total(scrambled), total(scrambled * (place | 1))


def digests(leaves: Mapping[str, Array]) -> dict[str, str]:
    """The digest of every leaf as 16 hexadecimal digits, by path. Blocks until the leaves are computed."""
    # One after the other: many programs with collectives under way at once starve the virtual devices of a CPU.
    halves = {path: jax.device_get(array_digest(leaf)) for path, leaf in leaves.items()}
    return {path: f"{int(first):08x}{int(second):08x}" for path, (first, second) in halves.items()}
