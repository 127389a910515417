"""The head: hidden states to logits, by a matrix, its adapter and a bound.

The logits are a sum of products `hidden @ matrix.T`: one, and a second narrow one if the head has an adapter.
No merged matrix exists. If the head has a bound c, a sum z becomes the logit c tanh(z / c).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.kernels.matmul import einsum_float32


class AdaptedHead(NamedTuple):
    """An output matrix with the factors of its adapter: hidden @ (matrix + b a.T).T."""

    matrix: Float[Array, "V D"]
    a: Float[Array, "D R"]
    """The first factor, times the adapter's scale."""
    b: Float[Array, "V R"]


UncappedHead = Float[Array, "V D"] | AdaptedHead


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CappedHead:
    """A head with bounded logits."""

    head: UncappedHead
    softcap: float = dataclasses.field(metadata={"static": True})
    """The bound."""


Head = UncappedHead | CappedHead


class Product(NamedTuple):
    """The product `hidden @ matrix.T`."""

    hidden: Float[Array, "... D"]
    matrix: Float[Array, "V D"]
    """Its rows are tokens."""


def products(hidden: Float[Array, "... D"], head: Head) -> tuple[Product, ...]:
    """Return the products whose sum, bounded by `softcap_of(head)`, is the logits.

    They have the dtype of the hidden states.
    """
    if isinstance(head, CappedHead):
        head = head.head
    if not isinstance(head, AdaptedHead):
        return (Product(hidden, head),)
    low = jnp.einsum("...d,dr->...r", hidden, head.a.astype(hidden.dtype))
    return Product(hidden, head.matrix), Product(low, head.b)


def softcap_of(head: Head) -> float | None:
    """Return the bound of the logits; None if there is none."""
    return head.softcap if isinstance(head, CappedHead) else None


def head_logits(hidden: Float[Array, "... D"], head: Head) -> Float[Array, "... V"]:
    """Return the logits, accumulated in float32."""
    return total(products(hidden, head), softcap_of(head))


def total(terms: Iterable[Product], softcap: float | None) -> Float[Array, "... V"]:
    """Return the logits that are the sum of products, accumulated in float32 and bounded by `softcap`."""
    first, *others = (
        einsum_float32("...d,vd->...v", hidden, matrix.astype(hidden.dtype)) for hidden, matrix in terms
    )
    logits = sum(others, first)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def softcap_slope(logits: Float[Array, "... V"], softcap: float) -> Float[Array, "... V"]:
    """Return the derivative of bounded logits with respect to the sums of products: 1 - tanh^2."""
    return 1.0 - jnp.square(logits / softcap)
