"""Causal grouped-query attention in plain JAX, on any device; `fused.py` has the kernels of some."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SEGMENTS = 4
"""Parts of a sequence; the queries of each meet no keys behind its end."""


def block_size(platform: str) -> int:
    """Queries whose scores [B, N, block, T] exist at one time: on a CPU as many as stay in its caches."""
    return 32 if platform == "cpu" else 512


def token_positions(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each token among the real tokens of its row; padding repeats its neighbour's."""
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def visible_keys(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"] | None,
    key_mask: Bool[Array, "B S"],
    window: Int[Array, ""] | None,
) -> Bool[Array, "B T S"]:
    """Which keys each query sees: real ones at most `window - 1` positions back and none ahead.

    Without key positions none is ahead: decoding without a sliding window.
    """
    visible = key_mask[:, None, :]
    if key_positions is None:
        return jnp.broadcast_to(visible, (*query_positions.shape, visible.shape[-1]))
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = visible & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Bool[Array, "B T"],
    window: Int[Array, ""] | None,
    scale: float,
    block: int,
) -> Float[Array, "B T N H"]:
    """Softmax attention of the real tokens of each row to themselves, with float32 logits.

    Query head n reads key head n // (N // K). Scores exist for `block` queries at a time, in the backward
    pass too, which makes them again. A query that sees no key (a row of padding) averages over some: finite,
    and ignored by callers.
    """
    batch, length, heads, head_dim = q.shape
    key_heads, block = k.shape[2], min(block, length)
    blocks = -(-length // block)
    segments = min(SEGMENTS, blocks)
    places = token_positions(mask)
    keys, values = (x.transpose(0, 2, 1, 3) for x in (k, v))
    queries = _blocks(q.reshape(batch, length, key_heads, -1, head_dim), blocks, block)
    queries, positions = queries.transpose(0, 1, 3, 4, 2, 5), _blocks(places, blocks, block)
    attended = []
    for segment in range(segments):
        first, last = (blocks * n // segments for n in (segment, segment + 1))
        end = min(last * block, length)
        visible = functools.partial(
            visible_keys, key_positions=places[:, :end], key_mask=mask[:, :end], window=window
        )
        read: Callable[..., Array] = functools.partial(
            _attend, keys=keys[:, :, :end], values=values[:, :, :end], visible=visible, scale=scale
        )
        read = read if blocks == 1 else jax.checkpoint(read)
        attended.append(jax.lax.map(read, (queries[first:last], positions[first:last])))
    whole = jnp.concatenate(attended)  # [blocks, B, K, G, block, H]
    return whole.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, head_dim)[:, :length]


def _blocks(x: Float[Array, "B T ..."] | Int[Array, "B T"], blocks: int, block: int) -> Array:
    """[blocks, B, block, ...], the last one filled up."""
    padding = [(0, 0), (0, blocks * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding).reshape(x.shape[0], blocks, block, *x.shape[2:]).swapaxes(0, 1)


def _attend(
    some: tuple[Float[Array, "B K G t H"], Int[Array, "B t"]],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    visible: Callable[[Int[Array, "B t"]], Bool[Array, "B t S"]],
    scale: float,
) -> Float[Array, "B K G t H"]:
    queries, positions = some
    logits = jnp.einsum("bkgth,bksh->bkgts", queries, keys, preferred_element_type=jnp.float32) * scale
    seen = visible(positions)[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, logits, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bkgts,bksh->bkgth", weights.astype(values.dtype), values)
