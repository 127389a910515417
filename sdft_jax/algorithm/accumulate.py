"""Gradient accumulation: a `lax.scan` over micro-batches with the result of one large batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.types import Params

Loss = Callable[[Params, Any], tuple[Float[Array, ""], Any]]
"""(trainable parameters, rows) -> (sum of weighted token losses, per-token statistics)."""


def accumulate(loss: Loss, params: Params, rows: Any, parts: int) -> tuple[Float[Array, ""], Any, Params]:
    """Return (loss, statistics, gradients) over all rows, computed for `1/parts` of them at a time.

    Args:
        loss: a sum over rows whose weights already include the aggregation over the whole batch, so that the
            sum over micro-batches is exact for completions of any length.
        params: the parameters to differentiate with respect to.
        rows: a pytree of arrays with the batch along axis 0.
        parts: the number of micro-batches; 1 needs no loop.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (value, stats), gradients = value_and_grad(params, rows)
        return value, stats, gradients

    def body(carry, micro):
        value, gradients = carry
        (micro_value, stats), micro_gradients = value_and_grad(params, micro)
        add = jax.tree.map(lambda total, g: total + g.astype(jnp.float32), gradients, micro_gradients)
        return (value + micro_value, add), stats

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    start = (jnp.zeros((), jnp.float32), zeros)
    (value, gradients), stats = jax.lax.scan(body, start, jax.tree.map(lambda x: _deal(x, parts), rows))
    gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)
    return value, jax.tree.map(_collect, stats), gradients


def _deal(x: Array, parts: int) -> Array:
    """Return [parts, B / parts, ...]; each part takes rows of every device, so that no row moves.

    For example, rows 0..7 on 4 devices (two rows each) and 2 parts: the parts are 0, 2, 4, 6 and 1, 3, 5, 7.
    """
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _collect(x: Array) -> Array:
    """Invert `_deal`."""
    return x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
