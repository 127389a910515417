"""Activations times weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(spec: str, x: Float[Array, ...], weight: Float[Array, ...], platform: str) -> Float[Array, ...]:
    """Return `jnp.einsum(spec, x, weight)`.

    Args:
        spec: the dimensions of activations, weight and result, such as "btd,df->btf".
        x: the activations.
        weight: shares the contracted dimensions with the activations.
        platform: on a CPU the gradient of the weight is computed in the weight's own order of dimensions.
    """
    # the backward pass may be traced outside `Model.numerics`
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if platform == "cpu":
        return _matmul_cpu(spec, precision, x, weight)
    return jnp.einsum(spec, x, weight, precision=precision)


def einsum_float32(spec: str, x: Float[Array, ...], y: Float[Array, ...]) -> Float[Array, ...]:
    """Return `jnp.einsum(spec, x, y)`, accumulated and returned in float32."""
    plain = functools.partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
    if jax.__version_info__ >= (0, 8):
        return plain(x, y)
    # the CPU of jax 0.7 has no product of bfloat16 with a float32 result
    return jax.lax.platform_dependent(
        x, y, cpu=lambda x, y: plain(x.astype(jnp.float32), y.astype(jnp.float32)), default=plain
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul_cpu(spec: str, precision: str | None, x: Array, weight: Array) -> Array:
    """Return the same product, with a backward pass that makes learning 9 to 17 % faster on a CPU.

    JAX computes the weight's gradient as [outputs, inputs] and transposes it. For that product a CPU
    transposes the gradient of the outputs, and recomputes the operations that produced it (the derivative of
    the activation function, for a feed-forward's gate).
    """
    return jnp.einsum(spec, x, weight, precision=precision)


def _forward(spec: str, precision: str | None, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    # not `_matmul_cpu`: a rematerialization policy does not see the product inside a custom_vjp function
    return jnp.einsum(spec, x, weight, precision=precision), (x, weight)


def _backward(
    spec: str, precision: str | None, residuals: tuple[Array, Array], d_out: Array
) -> tuple[Array, Array]:
    x, weight = residuals
    inputs, out = spec.split("->")
    x_spec, weight_spec = inputs.split(",")
    d_x = jnp.einsum(f"{out},{weight_spec}->{x_spec}", d_out, weight, precision=precision)
    return d_x, jnp.einsum(f"{x_spec},{out}->{weight_spec}", x, d_out, precision=precision)


_matmul_cpu.defvjp(_forward, _backward)
