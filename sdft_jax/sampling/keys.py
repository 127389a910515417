"""Random keys of one named generator, so that a seed gives the same results with any
`jax_default_prng_impl`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, Key, UInt32

GENERATOR = "threefry2x32"
"""A counter-based generator: a row's numbers do not depend on the other rows, as they do with `rbg` under
`vmap`."""


def make_key(seed: int) -> Key[Array, ""]:
    """Return the typed key of a seed."""
    return jax.random.key(seed, impl=GENERATOR)


def from_data(data: UInt32[Array, "*B K"]) -> Key[Array, "*B"]:
    """Return the typed key with this raw key data, such as `TrainState.key`."""
    return jax.random.wrap_key_data(data, impl=GENERATOR)


@functools.partial(jax.jit, static_argnames="rows")
def row_keys(key: Array, rows: int) -> Key[Array, " B"]:
    """Return one typed key per row: each row's position folded into `key`, or `key` itself if it has one key
    per row.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    # a key of `rbg` has four words: twice the key of threefry with the same seed
    key = from_data((jax.random.key_data(key) if typed else key)[..., :2])
    if key.ndim == 1:
        return key
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows, dtype=jnp.uint32))


@jax.jit
def sample_keys(key: Array, *numbers: Integer[Array, " B"]) -> Key[Array, " B"]:
    """Return the key of each sample: its numbers (row, turn, sample) folded into `key` in this order."""
    keys = jnp.broadcast_to(key, numbers[0].shape)
    return functools.reduce(fold_keys, (jnp.asarray(column, jnp.uint32) for column in numbers), keys)


@jax.jit
def fold_keys(keys: Key[Array, " B"], numbers: Integer[Array, " B"]) -> Key[Array, " B"]:
    """Return a new key for each pair of a key and a number."""
    return jax.vmap(jax.random.fold_in)(keys, numbers)
