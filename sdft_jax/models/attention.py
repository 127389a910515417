"""Causal grouped-query attention: the one place where a fused kernel would go."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BLOCK = 512
"""Queries whose scores [B, N, BLOCK, S] exist at one time."""


class Visibility(NamedTuple):
    """Which keys a query may see, before any sliding window."""

    query_positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"] | None
    """None: no key comes after any query (decoding without a sliding window)."""
    key_mask: Bool[Array, "B S"]
    """True on keys of real tokens."""


def token_positions(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each token among the real tokens of its row; padding repeats its neighbour's."""
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def visible_keys(visibility: Visibility, window: Int[Array, ""] | None) -> Bool[Array, "B T S"]:
    """The mask of `attention`: real keys at most `window - 1` positions back and none ahead."""
    visible = visibility.key_mask[:, None, :]
    if visibility.key_positions is None:
        return jnp.broadcast_to(visible, (*visibility.query_positions.shape, visible.shape[-1]))
    distance = visibility.query_positions[:, :, None] - visibility.key_positions[:, None, :]
    visible = visible & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    visibility: Visibility,
    window: Int[Array, ""] | None,
    scale: float,
) -> Float[Array, "B T N H"]:
    """Softmax attention with float32 logits; query head n reads key head n // (N // K).

    Scores exist for `BLOCK` queries at a time, in the backward pass too, which makes them again. A query that
    sees no key (a row of padding) averages over all of them: finite, and ignored by callers.
    """
    length, blocks = q.shape[1], -(-q.shape[1] // BLOCK)
    if blocks == 1:
        return _attend(q, k, v, visibility, window, scale)

    def split(x: Array) -> Array:
        """[B, T, ...] -> [blocks, B, BLOCK, ...]."""
        padded = jnp.pad(x, [(0, 0), (0, blocks * BLOCK - length)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(x.shape[0], blocks, BLOCK, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def attend(block: tuple[Array, Array]) -> Array:
        queries, positions = block
        return _attend(queries, k, v, visibility._replace(query_positions=positions), window, scale)

    attended = jax.lax.map(attend, (split(q), split(visibility.query_positions)))
    return attended.swapaxes(0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def _attend(
    q: Array, k: Array, v: Array, visibility: Visibility, window: Int[Array, ""] | None, scale: float
) -> Array:
    batch, length, heads, head_dim = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], head_dim)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * scale
    visible = visible_keys(visibility, window)[:, None, None, :, :]
    weights = jax.nn.softmax(jnp.where(visible, logits, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v).reshape(q.shape)
