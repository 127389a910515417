"""Digests of arrays: computed on the devices before a save, and again after a restore.

A digest depends on the bits of an array and on the position of each element, not on its sharding. Each device
reads its own shards, so that no process reads files back, neither before a commit nor before a restore.
TensorStore detects truncated files only: it returns other values for flipped bytes, and zeros for a missing
chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped, UInt32

from sdft_jax.kernels.numerics import bits
from sdft_jax.training.processes import gathered

Described = Mapping[str, tuple[str, str]]
"""Name of an array in a tree, such as `params/layers/q` -> (dtype and shape, digest)."""


def describe(tree: Any) -> dict[str, tuple[str, str]]:
    """Return dtype, shape and digest of every array of a tree; every process calls it."""
    sums = jax.device_get(_digests(_named(tree)))
    return {name: (spec, f"{int(sums[name]):08x}") for name, spec in specs(tree).items()}


def specs(tree: Any) -> dict[str, str]:
    """Return name -> dtype and shape, such as `float32[3,16]`, of arrays or of `jax.ShapeDtypeStruct`s."""
    return {
        name: f"{jnp.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]" for name, x in _named(tree).items()
    }


def difference(tree: Any, saved: Described) -> str | None:
    """Return the name of an array whose digest is not the saved one on some process, or None.

    The processes may have read different values of the same replicated array.
    """
    changed = (name for name, described in describe(tree).items() if described != tuple(saved.get(name, ())))
    return next(filter(None, gathered(next(changed, None))), None)


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@jax.jit
def _digests(arrays: Mapping[str, Array]) -> dict[str, UInt32[Array, ""]]:
    # one program: on a CPU, collectives of several programs may run in another order on each process
    return {name: _digest(x) for name, x in arrays.items()}


def _digest(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Return the sum, modulo 2^32, of a hash of each element's bits and position.

    The hash of one position is a bijection, so that a change of one element always changes the sum; other
    changes do with probability 1 - 2^-32. An integer sum does not depend on its order.
    """
    words = _words(x)
    position = jnp.zeros((), jnp.uint32)
    for axis in range(words.ndim):
        position = position * jnp.uint32(0x9E3779B1) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ (position * jnp.uint32(0x9E3779B1))), dtype=jnp.uint32)


def _words(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the bits of each element; an element of 8 bytes becomes two words."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {2: jnp.uint2, 4: jnp.uint4, 8: jnp.uint8, 16: jnp.uint16}.get(bits(x.dtype), jnp.uint32)
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return MurmurHash3's finalizer, a bijection of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
