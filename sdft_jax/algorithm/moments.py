"""Storage of an optimizer's moments in fewer bytes than its arithmetic, which is float32.

| `optimizer.moments` | bytes per weight and moment | stored                                             |
| ------------------- | --------------------------- | -------------------------------------------------- |
| `float32`           | 4                           | the number                                         |
| `bfloat16`          | 2                           | 8 significant bits                                 |
| `float8`            | 1                           | 4 significant bits, and a power of two for a row   |

Rounding is stochastic: up or down with probabilities such that the mean is the number itself. Rounding to the
nearest number would stop an average: with b2 = 0.999, a second moment changes by 0.1 % in a step, and the
numbers of bfloat16 are 0.4 to 0.8 % apart, those of float8 6 to 12 %.

In 8 bits a row (the last axis) has float8 numbers (e4m3) and the exponent of its largest one. Of a second
moment the square root is stored, which has half the range in bits: numbers down to 2^-17 of the largest in a
row are not 0. The mean of the root is exact; that of the moment is then about 5 % too large, and a step 2.5 %
too small. Evenly spaced numbers, such as int8 with a scale, are 0 below 1/254 of the largest, and a step that
is divided by such a second moment explodes. optax has no moments in 8 bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sdft_jax.sampling.keys import make_key
from sdft_jax.types import Params

FLOAT8 = jnp.float8_e4m3fn
_TOP = 8
"""The largest number of a row is stored as one from 2^7 to 2^8; the largest of float8 is 448."""
_LEAST = 2.0**-9
"""The smallest positive number of float8."""


class Scaled(NamedTuple):
    """An array in 8 bits: `values` times a power of two for each row."""

    values: Float[Array, "*axes columns"]
    exponent: Int[Array, "*axes 1"]


def store_moments(inner: optax.GradientTransformation, dtype: str | None) -> optax.GradientTransformation:
    """Return `inner` with another storage of the moments `mu` and `nu` of its state.

    Args:
        inner: a transformation that reads float32 gradients; its state has a `count` of steps.
        dtype: float32, bfloat16 or float8; None for the dtype of each parameter.
    """

    def init(params: Params) -> Any:
        state = inner.init(as_float32(params))
        chosen = FLOAT8 if dtype == "float8" else dtype

        def zeros() -> Params:
            return jax.tree.map(lambda p: _zeros(p.shape, jnp.dtype(chosen or p.dtype)), params)

        return state._replace(**{name: zeros() for name in _moments(state)})

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        dtypes = jax.tree.map(_dtype, state.mu, is_leaf=_is_scaled)
        updates, state = inner.update(updates, _loaded(state), params)
        return updates, _stored(state, dtypes)

    return optax.GradientTransformation(init, update)


def as_float32(tree: Params) -> Params:
    """Return the arrays of a tree in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def round_stochastically(x: Float[Array, "..."], dtype: Any, key: Array) -> Float[Array, "..."]:
    """Return float32 numbers in a dtype with fewer bits, rounded up or down such that their mean is `x`.

    The bits that the dtype lacks are cut off after a random number of as many bits is added. For example,
    1.25 is between 1 and 1.5 with one bit after the point: it becomes 1.5 in half of the cases.
    """
    numbers = jnp.finfo(dtype)
    lacking = 23 - numbers.nmant
    # the numbers below the smallest normal one are as far apart as those above it
    normal = jnp.float32(numbers.smallest_normal)
    shift = jnp.where(jnp.abs(x) < normal, jnp.copysign(normal, x), 0.0)
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> (32 - lacking)
    bits = jax.lax.bitcast_convert_type(x + shift, jnp.uint32) + noise
    cut = (bits >> lacking) << lacking
    return (jax.lax.bitcast_convert_type(cut, jnp.float32) - shift).astype(dtype)


def rounding_keys(stream: int, step: Int[Array, ""]) -> Iterator[Array]:
    """Yield the keys of the arrays that are rounded in a step; different in each stream."""
    key = jax.random.fold_in(make_key(stream), step)
    return (jax.random.fold_in(key, index) for index in itertools.count())


def _stored(state: Any, dtypes: Params) -> Any:
    """Return the state of an optimizer with each float32 moment in the dtype of its parameter."""
    keys = rounding_keys(0, state.count)

    def store(name: str) -> Params:
        root = name == "nu"
        return jax.tree.map(lambda x, dtype: _store(x, dtype, next(keys), root), getattr(state, name), dtypes)

    return state._replace(**{name: store(name) for name in _moments(state)})


def _loaded(state: Any) -> Any:
    """Return the state with its moments in float32."""

    def load(name: str) -> Params:
        root = name == "nu"
        return jax.tree.map(lambda x: _load(x, root), getattr(state, name), is_leaf=_is_scaled)

    return state._replace(**{name: load(name) for name in _moments(state)})


def _zeros(shape: tuple[int, ...], dtype: Any) -> Array | Scaled:
    values = jnp.zeros(shape, dtype)
    return Scaled(values, jnp.zeros((*shape[:-1], 1), jnp.int8)) if dtype == FLOAT8 else values


def _store(x: Array, dtype: Any, key: Array, root: bool) -> Array | Scaled:
    if dtype != FLOAT8:
        return x if dtype == jnp.float32 else round_stochastically(x, dtype, key)
    x = jnp.sqrt(x) if root else x
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    exponent = jnp.clip(exponent, -118, 127)
    values = round_stochastically(x * _power(_TOP - exponent), FLOAT8, key)
    if root:  # a positive second moment stays positive
        values = jnp.where(x > 0, jnp.maximum(values, jnp.asarray(_LEAST, FLOAT8)), values)
    return Scaled(values, exponent.astype(jnp.int8))


def _load(x: Array | Scaled, root: bool) -> Array:
    if not isinstance(x, Scaled):
        return x.astype(jnp.float32)
    number = x.values.astype(jnp.float32) * _power(x.exponent.astype(jnp.int32) - _TOP)
    return jnp.square(number) if root else number


def _power(exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return two to the power of an exponent from -126 to 127, exactly."""
    return jnp.ldexp(jnp.ones((), jnp.float32), exponent)


def _moments(state: Any) -> list[str]:
    return [name for name in ("mu", "nu") if hasattr(state, name)]


def _is_scaled(x: Any) -> bool:
    return isinstance(x, Scaled)


def _dtype(x: Array | Scaled) -> Any:
    return x.values.dtype if isinstance(x, Scaled) else x.dtype
