"""Causal grouped-query attention over whole sequences in plain JAX, for any device.

`fused_attention` has platform-specific kernels with the same results.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.kernels.matmul import einsum_float32

SEGMENTS = 4
"""Number of segments that a sequence is split into; queries of a segment skip all keys after its end."""


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """The inputs of one layer's attention: its arrays, and the keys that each query may read.

    Query head n reads key head n // (N // K). A query that may read no key (padding) returns a finite
    average, which callers ignore.
    """

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]
    mask: Bool[Array, "B T"] | Bool[Array, "B 1 S"]
    """True on real tokens; for one query per row, True on the keys that it reads."""
    window: int | Int[Array, ""] | None
    """Number of positions that a query reads, itself included; None for all positions up to its own."""
    scale: float
    """Factor on the scores."""
    sinks: Float[Array, " N"] | None = None
    """A score of each query head beside those of the keys, in float32, whose value is 0; None without."""


def block_size(platform: str) -> int:
    """Return the number of queries whose scores [B, N, block, S] exist at one time.

    On a CPU, the scores of 32 queries fit in the cache: 9 times faster than all 584 queries at once.
    """
    return 32 if platform == "cpu" else 512


def token_positions(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Return the position of each token among the real tokens of its row.

    Padding has the position of the last real token before it, or 0: the mask 0 0 1 1 0 gives 0 0 0 1 1.
    """
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def visible_keys(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    key_mask: Bool[Array, "B S"],
    window: int | Int[Array, ""] | None,
) -> Bool[Array, "B T S"]:
    """Return the mask of the keys that each query reads: real ones, up to `window - 1` positions back."""
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = key_mask[:, None, :] & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def attention(call: AttentionCall, block: int) -> Float[Array, "B T N H"]:
    """Return the softmax attention of each row's real tokens to themselves, with float32 scores.

    Scores exist for `block` queries at a time, also in the backward pass, which recomputes them.
    """
    batch, length, heads, head_dim = call.q.shape
    key_heads, block = call.k.shape[2], min(block, length)
    blocks = -(-length // block)
    segments = min(SEGMENTS, blocks)
    row_positions = token_positions(call.mask)
    keys, values = (x.transpose(0, 2, 1, 3) for x in (call.k, call.v))
    queries = _blocks(call.q.reshape(batch, length, key_heads, -1, head_dim), blocks, block)
    queries, positions = queries.transpose(0, 1, 3, 4, 2, 5), _blocks(row_positions, blocks, block)
    sinks = None if call.sinks is None else call.sinks.reshape(1, key_heads, -1, 1, 1)
    attended = []
    for segment in range(segments):
        first, last = (blocks * n // segments for n in (segment, segment + 1))
        end = min(last * block, length)
        visible = functools.partial(
            visible_keys,
            key_positions=row_positions[:, :end],
            key_mask=call.mask[:, :end],
            window=call.window,
        )
        attend: Callable[..., Array] = functools.partial(
            _attend,
            keys=keys[:, :, :end],
            values=values[:, :, :end],
            visible=visible,
            scale=call.scale,
            sinks=sinks,
        )
        attend = attend if blocks == 1 else jax.checkpoint(attend)
        attended.append(jax.lax.map(attend, (queries[first:last], positions[first:last])))
    blocked = jnp.concatenate(attended)  # [blocks, B, K, G, block, H]
    return blocked.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, head_dim)[:, :length]


def softmax(scores: Float[Array, "... S"], sinks: Float[Array, "... 1"] | None) -> Float[Array, "... S"]:
    """Return the weights of the keys, which add up to 1 together with the weight of the sink, if there is one
    (gpt-oss; Xiao et al. 2023, arXiv 2309.17453).
    """
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    largest = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sinks)
    shifted = scores - jax.lax.stop_gradient(largest)
    exponentials = jnp.exp(shifted)
    sink = jnp.exp(sinks - jax.lax.stop_gradient(largest))
    return exponentials / (jnp.sum(exponentials, axis=-1, keepdims=True) + sink)


def _blocks(x: Float[Array, "B T ..."] | Int[Array, "B T"], blocks: int, block: int) -> Array:
    """Return x as [blocks, B, block, ...]; the last block is padded."""
    padding = [(0, 0), (0, blocks * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding).reshape(x.shape[0], blocks, block, *x.shape[2:]).swapaxes(0, 1)


def _attend(
    block: tuple[Float[Array, "B K G t H"], Int[Array, "B t"]],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    visible: Callable[[Int[Array, "B t"]], Bool[Array, "B t S"]],
    scale: float,
    sinks: Float[Array, "1 K G 1 1"] | None,
) -> Float[Array, "B K G t H"]:
    queries, positions = block
    logits = einsum_float32("bkgth,bksh->bkgts", queries, keys) * scale
    seen = visible(positions)[:, None, None]
    weights = softmax(jnp.where(seen, logits, jnp.finfo(jnp.float32).min), sinks)
    return jnp.einsum("bkgts,bksh->bkgth", weights.astype(values.dtype), values)
