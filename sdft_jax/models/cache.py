"""The KV cache: its layout, the writes of a layer, and the attention of a new token to it.

Keys are [..., H, S] and values [..., S, H]: a CPU then reads both contiguously (with values as [H, S] it
takes 3 to 5 times as long). On a TPU, slots are the minor dimension of both, and the layout is pinned:
otherwise the compiler stores a token's heads together, and copies and transposes each layer's whole cache for
every token (40 % of the time of decoding a 0.5B model on v5e, by the compiler's own estimate).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.kernels.attention import AttentionCall
from sdft_jax.kernels.matmul import einsum_float32
from sdft_jax.models.architecture import Architecture
from sdft_jax.sharding import Sharding, constrain, partition_spec

AXES = (None, "batch", "kv_heads", None, None)
"""The logical axes of keys and values."""

Layers = Any
"""[L, B, K, ...] for a scan over layers, or a tuple of [B, K, ...]; `...` is H, S for keys and S, H for
values."""

SLOTS = -1, -2
"""The axis of slots in keys and in values."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """The keys and values of every layer; prompts are left-padded, so that all rows share the next slot."""

    keys: Layers
    """Float[Array, "L B K H S"]."""
    values: Layers
    """Float[Array, "L B K S H"]."""
    mask: Bool[Array, "B S"]
    """True on slots that hold real tokens."""
    length: Int[Array, ""]
    """The next slot, the same in all rows."""
    positions: Int[Array, " B"]
    """Position of each row's next token."""


Store = tuple[Layers, Layers]
"""Keys and values, passed from layer to layer."""


def empty_cache(config: Architecture, batch: int, length: int, dtype: Any, sharding: Sharding) -> KVCache:
    """Return an empty cache of `length` slots."""
    heads, tail = (config.num_hidden_layers, batch, config.num_key_value_heads), (config.head_dim, length)
    keys, values = (
        constrain(jnp.zeros((*heads, *own), dtype), sharding, *AXES) for own in (tail, tail[::-1])
    )
    mask = jnp.zeros((batch, length), bool)
    return KVCache(keys, values, mask, jnp.int32(0), jnp.zeros((batch,), jnp.int32))


def grow(cache: KVCache, length: int) -> KVCache:
    """Return the cache extended to `length` slots; the new ones are empty."""

    def longer(axis: int, x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, widths)

    keys, values = (
        jax.tree.map(functools.partial(longer, axis), cached)
        for axis, cached in zip(SLOTS, (cache.keys, cache.values), strict=True)
    )
    return dataclasses.replace(cache, keys=keys, values=values, mask=longer(-1, cache.mask))


def write(
    store: Store,
    layer: Int[Array, ""],
    slot: Int[Array, ""] | int,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    sharding: Sharding,
) -> Store:
    """Write one layer's new keys and values from `slot` on, in place."""
    keys, values = (
        constrain(_write(cached, (layer,), slot, new, axis), sharding, *AXES)
        for cached, new, axis in zip(store, (k, v), SLOTS, strict=True)
    )
    return keys, values


def write_and_attend(
    store: Store, layer: Int[Array, ""] | int, slot: Int[Array, ""], call: AttentionCall, sharding: Sharding
) -> tuple[Store, Float[Array, "B 1 N H"]]:
    """Write the keys and values of one new token per row into `slot`, and attend to the visible slots.

    Each device handles its own rows and key heads under `shard_map`: a layout can be pinned only there.

    Args:
        store: keys and values of all layers.
        layer: index of this layer.
        slot: the slot to write.
        call: queries, keys and values of the new tokens, T = 1; `mask` has the visible slots, [B, 1, S].
        sharding: rows follow `batch`, heads `kv_heads`.
    """
    pinned = sharding.device.platform == "tpu"
    separate = isinstance(store[0], tuple)
    own: Any = tuple(cached[layer] for cached in store) if separate else store

    def local(cache, layer, slot, token, visible):
        at = () if separate else (layer,)
        keys, values = (
            _pin(_write(_pin(cached, axis, pinned), at, slot, new, axis), axis, pinned)
            for cached, new, axis in zip(cache, token[1:], SLOTS, strict=True)
        )
        return (keys, values), _read(token[0], keys[at], values[at], visible, call.scale)

    replicated = jax.sharding.PartitionSpec()
    cache = partition_spec(sharding.rules, AXES[1:] if separate else AXES)
    token = partition_spec(sharding.rules, ("batch", None, "kv_heads", None))
    rows = partition_spec(sharding.rules, ("batch", None, None))
    written, attended = jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=((cache, cache), replicated, replicated, (token, token, token), rows),
        out_specs=((cache, cache), token),
        check_vma=False,
    )(tuple(own), layer, slot, (call.q, call.k, call.v), call.mask)
    if separate:
        written = tuple(
            (*cached[:layer], new, *cached[layer + 1 :]) for cached, new in zip(store, written, strict=True)
        )
    return written, attended


def _write(cached: Array, at: tuple[Any, ...], slot: Any, new: Float[Array, "B T K H"], axis: int) -> Array:
    part = jnp.moveaxis(new.transpose(0, 2, 1, 3), 2, axis)
    start = [*at, *(0,) * part.ndim]
    start[axis] = slot
    return jax.lax.dynamic_update_slice(
        cached, jnp.expand_dims(part, range(len(at))).astype(cached.dtype), [jnp.int32(x) for x in start]
    )


def _read(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    visible: Bool[Array, "B 1 S"],
    scale: float,
) -> Float[Array, "B 1 N H"]:
    batch, head_dim = q.shape[0], q.shape[-1]
    keys, values = keys.astype(q.dtype), values.astype(q.dtype)
    grouped = q.reshape(batch, keys.shape[1], -1, head_dim)
    scores = einsum_float32("bkgh,bkhs->bkgs", grouped, keys) * scale
    scores = jnp.where(visible[:, :, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bkgs,bksh->bkgh", weights.astype(values.dtype), values).reshape(q.shape)


def _pin(x: Array, slots: int, pinned: bool) -> Array:
    """Return x with the axis of slots as the minor dimension in memory."""
    order = [*(axis for axis in range(x.ndim) if axis != x.ndim + slots), x.ndim + slots]
    return with_layout_constraint(x, Layout(tuple(order))) if pinned else x
