"""The head: hidden states to logits, by a matrix and its adapter.

The logits are a sum of products `hidden @ matrix.T`: one, and a second narrow one if the head has an adapter.
No merged matrix exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.kernels.matmul import einsum_float32


class AdaptedHead(NamedTuple):
    """An output matrix with the factors of its adapter: hidden @ (matrix + b a.T).T."""

    matrix: Float[Array, "V D"]
    a: Float[Array, "D R"]
    """The first factor, times the adapter's scale."""
    b: Float[Array, "V R"]


Head = Float[Array, "V D"] | AdaptedHead


class Product(NamedTuple):
    """The product `hidden @ matrix.T`."""

    hidden: Float[Array, "... D"]
    matrix: Float[Array, "V D"]
    """Its rows are tokens."""


def products(hidden: Float[Array, "... D"], head: Head) -> tuple[Product, ...]:
    """Return the products whose sum is the logits, in the dtype of the hidden states."""
    if not isinstance(head, AdaptedHead):
        return (Product(hidden, head),)
    low = jnp.einsum("...d,dr->...r", hidden, head.a.astype(hidden.dtype))
    return Product(hidden, head.matrix), Product(low, head.b)


def head_logits(hidden: Float[Array, "... D"], head: Head) -> Float[Array, "... V"]:
    """Return the logits, accumulated in float32."""
    return total(products(hidden, head))


def total(terms: Iterable[Product]) -> Float[Array, "... V"]:
    """Return the sum of products, accumulated in float32."""
    first, *others = (
        einsum_float32("...d,vd->...v", hidden, matrix.astype(hidden.dtype)) for hidden, matrix in terms
    )
    return sum(others, first)
