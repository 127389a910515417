"""Activations times weights, with the gradient of the weights formed in their own order."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(spec: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum(spec, x, weight)`, whose gradients it has too.

    JAX makes the weights' gradient as [outputs, inputs] and transposes it. Before a CPU multiplies so, it
    transposes the gradient of the outputs, and recomputes on the way what made it (for a feed-forward's gate
    the derivative of its activation): that took 9 to 17 % of learning.

    Args:
        spec: of `x`, `weight` and result, such as "btd,df->btf".
        x: activations.
        weight: shares the contracted dimensions.
    """
    # the backward pass may be traced outside `Model.matmul_precision`
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _product(spec, precision, x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec: str, precision: str | None, x: Array, weight: Array) -> Array:
    return jnp.einsum(spec, x, weight, precision=precision)


def _forward(spec: str, precision: str | None, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    # not by `_product`: a policy of rematerialisation would not see the product in it
    return jnp.einsum(spec, x, weight, precision=precision), (x, weight)


def _backward(
    spec: str, precision: str | None, read: tuple[Array, Array], d_out: Array
) -> tuple[Array, Array]:
    x, weight = read
    inputs, out = spec.split("->")
    own, theirs = inputs.split(",")
    d_x = jnp.einsum(f"{out},{theirs}->{own}", d_out, weight, precision=precision)
    return d_x, jnp.einsum(f"{own},{out}->{theirs}", x, d_out, precision=precision)


_product.defvjp(_forward, _backward)
