"""The KV cache: how it lies in memory, how layers write into it, and what a new token reads there.

Keys are [..., H, S] and values [..., S, H]: so a CPU reads both along rows (values the other way take it 3
to 5 times as long). On TPU slots are innermost in memory for both, and pinned there: left to itself the
compiler stores a token's heads together, and then copies and transposes each layer's whole cache at every
token (40 % of the time of decoding a 0.5B model on v5e, by its own estimate).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.models.architecture import ModelConfig
from sdft_jax.sharding import Sharding, constrain, partition_spec

AXES = (None, "batch", "kv_heads", None, None)
"""Logical axes of keys and values."""

Layers = Any
"""[L, B, K, ...] for a scan over layers, or without one [B, K, ...] for each; `...` is H, S or S, H."""

SLOTS = -1, -2
"""The axis of slots, in keys and in values."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer. Prompts are left-padded, so all rows share the next slot."""

    keys: Layers
    """Float[Array, "L B K H S"]."""
    values: Layers
    """Float[Array, "L B K S H"]."""
    mask: Bool[Array, "B S"]
    """True on slots that hold tokens."""
    length: Int[Array, ""]
    """The next slot, the same in all rows."""
    positions: Int[Array, " B"]
    """Position of each row's next token."""


Store = tuple[Layers, Layers]
"""Keys and values, as the layers hand them on."""


def empty_cache(
    config: ModelConfig, batch: int, length: int, dtype: Any, sharding: Sharding | None
) -> KVCache:
    """A cache of `length` slots without tokens."""
    heads, tail = (config.num_hidden_layers, batch, config.num_key_value_heads), (config.head_dim, length)
    keys, values = (
        constrain(jnp.zeros((*heads, *own), dtype), sharding, *AXES) for own in (tail, tail[::-1])
    )
    mask = jnp.zeros((batch, length), bool)
    return KVCache(keys, values, mask, jnp.int32(0), jnp.zeros((batch,), jnp.int32))


def grow(cache: KVCache, length: int) -> KVCache:
    """With `length` slots, of which the new ones are empty."""

    def longer(axis: int, x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, widths)

    keys, values = (
        jax.tree.map(functools.partial(longer, axis), whole)
        for axis, whole in zip(SLOTS, (cache.keys, cache.values), strict=True)
    )
    return dataclasses.replace(cache, keys=keys, values=values, mask=longer(-1, cache.mask))


def write(
    store: Store,
    layer: Int[Array, ""],
    slot: Int[Array, ""] | int,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    sharding: Sharding | None,
) -> Store:
    """One layer's new keys and values from `slot` on, in place."""
    keys, values = (
        constrain(_write(whole, (layer,), slot, new, axis), sharding, *AXES)
        for whole, new, axis in zip(store, (k, v), SLOTS, strict=True)
    )
    return keys, values


def write_and_attend(
    store: Store,
    layer: Int[Array, ""] | int,
    slot: Int[Array, ""],
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B 1 K H"],
    v: Float[Array, "B 1 K H"],
    visible: Bool[Array, "B 1 S"],
    scale: float,
    sharding: Sharding | None,
) -> tuple[Store, Float[Array, "B 1 N H"]]:
    """One new token of each row: its keys and values into `slot`, and what it reads in the visible slots.

    Each device does it for its own rows and key heads, under `shard_map`: a layout can be pinned only there.
    """
    pinned = _platform(sharding) == "tpu"
    apart = isinstance(store[0], tuple)
    own: Any = tuple(whole[layer] for whole in store) if apart else store
    axes = AXES[1:] if apart else AXES

    def local(keys, values, layer, slot, q, k, v, visible):
        at = () if apart else (layer,)
        keys, values = (
            _pin(_write(_pin(whole, axis, pinned), at, slot, new, axis), axis, pinned)
            for whole, new, axis in zip((keys, values), (k, v), SLOTS, strict=True)
        )
        return keys, values, _read(q, keys[at], values[at], visible, scale)

    if sharding is not None:
        whole = jax.sharding.PartitionSpec()
        cache = partition_spec(sharding.rules, axes)
        token = partition_spec(sharding.rules, ("batch", None, "kv_heads", None))
        rows = partition_spec(sharding.rules, ("batch", None, None))
        local = jax.shard_map(
            local,
            mesh=sharding.mesh,
            in_specs=(cache, cache, whole, whole, token, token, token, rows),
            out_specs=(cache, cache, token),
            check_vma=False,
        )
    *written, attended = local(own[0], own[1], layer, slot, q, k, v, visible)
    if apart:
        written = [
            (*whole[:layer], new, *whole[layer + 1 :]) for whole, new in zip(store, written, strict=True)
        ]
    return (written[0], written[1]), attended


def _write(whole: Array, at: tuple[Any, ...], slot: Any, new: Float[Array, "B T K H"], axis: int) -> Array:
    part = jnp.moveaxis(new.transpose(0, 2, 1, 3), 2, axis)
    start = [*at, *(0,) * part.ndim]
    start[axis] = slot
    return jax.lax.dynamic_update_slice(
        whole, jnp.expand_dims(part, range(len(at))).astype(whole.dtype), start
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
    scores = jnp.einsum("bkgh,bkhs->bkgs", grouped, keys, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(visible[:, :, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bkgs,bksh->bkgh", weights.astype(values.dtype), values).reshape(q.shape)


def _pin(x: Array, slots: int, pinned: bool) -> Array:
    """With the axis of slots innermost in memory."""
    order = [*(axis for axis in range(x.ndim) if axis != x.ndim + slots), x.ndim + slots]
    return with_layout_constraint(x, Layout(tuple(order))) if pinned else x


def _platform(sharding: Sharding | None) -> str:
    device = jax.devices()[0] if sharding is None else sharding.mesh.devices.flat[0]
    return device.platform
