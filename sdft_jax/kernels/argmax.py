"""The index of the largest number in each row."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def argmax(x: Float[Array, "B V"], platform: str) -> Int[Array, " B"]:
    """Return `jnp.argmax(x, axis=-1)`: the first of equal numbers."""
    return _argmax_by_two_maxima(x) if platform == "cpu" else jnp.argmax(x, axis=-1)


def _argmax_by_two_maxima(x: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Return the argmax of fewer than 2^24 numbers by two plain maxima, which XLA vectorizes on a CPU.

    For example, [3, 7, 7] has the maximum 7; counted from the end its positions are 2 and 1, so that the
    larger one, 2, is the first: 3 - 2 = 1.
    """
    size = x.shape[-1]
    from_end = size - jnp.arange(size, dtype=jnp.float32)
    candidates = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), from_end, 1.0)
    return size - jnp.max(candidates, axis=-1).astype(jnp.int32)
