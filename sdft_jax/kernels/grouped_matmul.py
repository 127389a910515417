"""The product of the rows of each group with a matrix of this group, for mixtures of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_SMALLEST_BLOCK = 16  # the rows of a matrix unit's tile


def grouped_matmul(
    x: Float[Array, "R i"],
    matrices: Float[Array, "E i o"],
    groups: Int[Array, " E"],
    platform: str,
    expected: int,
) -> Float[Array, "R o"]:
    """Return the rows of each group times the matrix of this group, and 0 for rows after the last group.

    Args:
        x: the rows of the first group, then those of the second one, and so on.
        matrices: one matrix for each group.
        groups: the number of rows of each group.
        platform: that of the devices. For a GPU, XLA (jax 0.10.2) computes `lax.ragged_dot` as the product of
            every matrix with the rows of all groups, which it copies for each matrix.
        expected: the number of rows that a group has on average, for the speed on a GPU only.
    """
    # the backward pass may be traced outside `Model.numerics`
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if platform == "gpu":
        return _in_blocks(_Plan(max(expected, _SMALLEST_BLOCK), precision), x, matrices, groups)
    # for rows after the last group, ragged_dot defines neither the product nor its gradient
    in_group = (jnp.arange(len(x)) < jnp.sum(groups))[:, None]
    out = jax.lax.ragged_dot(jnp.where(in_group, x, 0), matrices, groups, precision=precision)
    return jnp.where(in_group, out, 0)


class _Plan(NamedTuple):
    rows: int
    """The number of rows of a block."""
    precision: str | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(plan: _Plan, x: Array, matrices: Array, groups: Array) -> Array:
    """Return the same from batched products: round r multiplies the r-th block of rows of every group.

    For example, groups of 5, 1 and 0 rows have three rounds of blocks of two rows: rows 0 and 1 of the first
    group and the row of the second one; rows 2 and 3 of the first; row 4 of the first.
    """
    return _products(plan, "esi,eio->eso", x, matrices, groups)


def _forward(plan: _Plan, x: Array, matrices: Array, groups: Array) -> tuple[Array, Any]:
    return _in_blocks(plan, x, matrices, groups), (x, matrices, groups)


def _backward(plan: _Plan, saved: Any, d_out: Array) -> tuple[Array, Array, Any]:
    x, matrices, groups = saved

    def add(index: Array, total: Array) -> Array:
        blocks = (_block(plan.rows, array, groups, index) for array in (x, d_out))
        return total + jnp.einsum(
            "esi,eso->eio", *blocks, precision=plan.precision, preferred_element_type=jnp.float32
        )

    d_matrices = _each_round(plan.rows, groups, add, jnp.zeros(matrices.shape, jnp.float32))
    d_x = _products(plan, "eso,eio->esi", d_out, matrices, groups)
    return d_x, d_matrices.astype(matrices.dtype), np.zeros(groups.shape, jax.dtypes.float0)


_in_blocks.defvjp(_forward, _backward)


def _products(plan: _Plan, spec: str, x: Array, matrices: Array, groups: Array) -> Array:
    ends, row = jnp.cumsum(groups), jnp.arange(len(x))
    group = jnp.minimum(jnp.searchsorted(ends, row, side="right"), len(groups) - 1)
    place = row - (ends - groups)[group]

    def multiply(index: Array, out: Array) -> Array:
        block = _block(plan.rows, x, groups, index)
        product = jnp.einsum(spec, block, matrices, precision=plan.precision)
        in_block = (row < ends[-1]) & (place // plan.rows == index)
        return jnp.where(in_block[:, None], product[group, place % plan.rows], out)

    width = matrices.shape[2 if spec.endswith("o") else 1]
    return _each_round(plan.rows, groups, multiply, jnp.zeros((len(x), width), x.dtype))


def _block(
    size: int, x: Float[Array, "R i"], groups: Int[Array, " E"], index: Array
) -> Float[Array, "E S i"]:
    """Return the index-th block of rows of every group; rows after the end of a group are 0."""
    place = index * size + jnp.arange(size)[None]
    rows = jnp.where(place < groups[:, None], (jnp.cumsum(groups) - groups)[:, None] + place, len(x))
    return x.at[rows].get(mode="fill", fill_value=0)


def _each_round(size: int, groups: Array, step: Callable[[Array, Array], Array], start: Array) -> Array:
    return jax.lax.fori_loop(0, -(-jnp.max(groups) // size), step, start)
