"""The cache for decoding: the state of each kind of layers, and the attention of a new token to it.

The state of a gated delta net has a fixed size: the last inputs of its convolution, and a matrix.
Padding, before a prompt or after the end of a row, leaves no trace in a state: its slots are zero.

A state of attention has a slot for each position, or, in layers with a sliding window, for each position of
the window: slots then are a ring, and position t is in slot t % W. For example, with a window of 4 the slots
hold the positions 4 5 2 3 when the next one is 6, which will replace 2.

Keys are [..., H, S] and values [..., S, H]: a CPU then reads both contiguously (with values as [H, S] it
takes 3 to 5 times as long). On a TPU, slots are the minor dimension of both, and the layout is pinned:
otherwise the compiler stores a token's heads together, and copies and transposes each layer's whole cache for
every token (40 % of the time of decoding a 0.5B model on v5e, by the compiler's own estimate).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.kernels.attention import AttentionCall, softmax
from sdft_jax.kernels.matmul import einsum_float32
from sdft_jax.models.architecture import Architecture, DeltaSizes, LayerKind
from sdft_jax.sharding import Sharding, constrain, partition_spec
from sdft_jax.sharding.partitioning import LogicalAxes

AXES = (None, "batch", "kv_heads", None, None)
"""The logical axes of keys and values."""

Layers = Any
"""[L, B, K, ...] for a scan over layers, or a tuple of [B, K, ...]; `...` is H, S for keys and S, H for
values."""

SLOTS = -1, -2
"""The axis of slots in keys and in values."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeysValues:
    """The keys and values of the L layers of one kind."""

    keys: Layers
    """Float[Array, "L B K H S"]."""
    values: Layers
    """Float[Array, "L B K S H"]."""
    window: int | None = dataclasses.field(metadata={"static": True})
    """The largest number of slots; None if there is no limit."""
    axes: ClassVar[dict[str, LogicalAxes]] = {"keys": AXES, "values": AXES}

    @property
    def slots(self) -> int:
        """The number of slots."""
        layer = self.keys[0] if isinstance(self.keys, tuple) else self.keys
        return int(layer.shape[SLOTS[0]])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeltaState:
    """The states of the L layers of gated delta nets, or, without L, that of one of them."""

    tail: Layers
    """Float[Array, "L B S-1 C"]: the last inputs of the convolution."""
    matrix: Layers
    """Float[Array, "L B G K P"], in float32: the matrix from keys to values of each head."""
    axes: ClassVar[dict[str, LogicalAxes]] = {
        "tail": (None, "batch", None, "heads"),
        "matrix": (None, "batch", "heads", None, None),
    }


State = KeysValues | DeltaState | None
"""The state of a kind of layers; None if they share the keys and values of another kind."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The state of every layer; prompts are left-padded, so that all rows have the same length."""

    states: tuple[State, ...]
    """The states of each kind of layers, in the order of `Architecture.kinds`."""
    length: Int[Array, ""]
    """Number of tokens in a row, padding included."""
    positions: Int[Array, " B"]
    """Position of each row's next token: its number of tokens without padding."""
    limits: Int[Array, " B"]
    """The number of tokens without padding that each row may reach, which selects frequencies (longrope)."""


def empty_cache(config: Architecture, batch: int, length: int, dtype: Any, sharding: Sharding) -> Cache:
    """Return an empty cache for sequences of `length` tokens."""

    def empty(kind: int) -> State:
        layers, window = len(config.layers_of(kind)), config.kinds[kind].window
        if config.kinds[kind].shares_keys:
            return None
        if config.delta is not None and config.kinds[kind].mixer == "gated_delta":
            one = empty_delta_state(config.delta, batch, dtype)
            return jax.tree.map(lambda x: jnp.zeros((layers, *x.shape), x.dtype), one)
        heads, slots = config.heads_of(config.kinds[kind]), slot_count(window, length)
        shape = layers, batch, heads.count
        keys = jnp.zeros((*shape, heads.dim, slots), dtype)
        return KeysValues(keys, jnp.zeros((*shape, slots, heads.dim), dtype), window)

    states = tuple(
        _constrained(empty(index), kind_sharding(kind, sharding)) for index, kind in enumerate(config.kinds)
    )
    return Cache(states, jnp.int32(0), jnp.zeros((batch,), jnp.int32), jnp.full((batch,), length, jnp.int32))


def slot_count(window: int | None, length: int) -> int:
    """Return the number of slots of layers with this window for sequences of `length` tokens."""
    return min(length, window or length)


def kind_sharding(kind: LayerKind, sharding: Sharding) -> Sharding:
    """Return the sharding inside a kind of layers: `kv_heads` has the rule of its key-value heads."""
    if kind.heads is None:
        return sharding
    rules = dataclasses.replace(sharding.rules, kv_heads=sharding.rules.full_kv_heads)
    return dataclasses.replace(sharding, rules=rules)


def state_shardings(kinds: Sequence[LayerKind], states: Sequence[Any], sharding: Sharding) -> Any:
    """Return the sharding of each array of stacked states, one state for each kind; None for None."""

    def of(kind: LayerKind, state: Any) -> Any:
        if state is None:
            return None
        own = kind_sharding(kind, sharding)
        return dataclasses.replace(state, **{name: own.named(*axes) for name, axes in state.axes.items()})

    return tuple(of(kind, state) for kind, state in zip(kinds, states, strict=True))


def _constrained(state: Any, sharding: Sharding) -> Any:
    if state is None:
        return None
    placed = {name: constrain(getattr(state, name), sharding, *axes) for name, axes in state.axes.items()}
    return dataclasses.replace(state, **placed)


def empty_delta_state(sizes: DeltaSizes, batch: int, dtype: Any) -> DeltaState:
    """Return the state of one layer before the first token."""
    tail = jnp.zeros((batch, sizes.convolution - 1, sizes.channels), dtype)
    return DeltaState(
        tail, jnp.zeros((batch, sizes.value_heads, sizes.key_dim, sizes.value_dim), jnp.float32)
    )


def read_delta(state: DeltaState, layer: Int[Array, ""] | int) -> DeltaState:
    """Return the state of one layer."""
    if isinstance(state.tail, tuple):
        return DeltaState(state.tail[layer], state.matrix[layer])
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), state)


def write_delta(
    state: DeltaState, layer: Int[Array, ""] | int, new: DeltaState, sharding: Sharding
) -> DeltaState:
    """Write the state of one layer, in place."""
    if isinstance(state.tail, tuple):
        return DeltaState(replaced(state.tail, layer, new.tail), replaced(state.matrix, layer, new.matrix))
    written = jax.tree.map(
        lambda x, own: jax.lax.dynamic_update_index_in_dim(x, own.astype(x.dtype), layer, 0), state, new
    )
    return _constrained(written, sharding)


def replaced(items: tuple[Any, ...], index: Any, new: Any) -> tuple[Any, ...]:
    """Return a tuple with a new item in one place; the index is static."""
    return (*items[:index], new, *items[index + 1 :])


def grow(cache: Cache, length: int) -> Cache:
    """Return the cache for sequences of `length` tokens; the new slots are empty.

    States without slots do not grow.
    """

    def longer(state: State) -> State:
        if not isinstance(state, KeysValues):
            return state
        added = slot_count(state.window, length) - state.slots

        def pad(axis: int, x: Array) -> Array:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, added)
            return jnp.pad(x, widths)

        keys, values = (
            jax.tree.map(functools.partial(pad, axis), cached)
            for axis, cached in zip(SLOTS, (state.keys, state.values), strict=True)
        )
        return dataclasses.replace(state, keys=keys, values=values)

    return dataclasses.replace(cache, states=tuple(map(longer, cache.states)))


def separate_states(cache: Cache) -> Cache:
    """Return the cache with each layer in arrays of its own."""
    return dataclasses.replace(cache, states=jax.tree.map(tuple, cache.states))


def visible_slots(state: KeysValues, cache: Cache) -> Bool[Array, "B 1 S"]:
    """Return the slots that each row's next token reads, including its own.

    A slot holds the token that is `distance` positions back, if its row has so many.
    """
    distance = (cache.length - jnp.arange(state.slots)) % state.slots
    return distance[None, None, :] <= cache.positions[:, None, None]


def write_prompt(
    state: KeysValues,
    layer: Int[Array, ""] | int,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    sharding: Sharding,
) -> KeysValues:
    """Write one layer's keys and values of a prompt into an empty state, or those of its last positions."""
    slots, length = state.slots, k.shape[1]
    if length > slots:
        k, v = (jnp.roll(x[:, -slots:], length % slots, axis=1) for x in (k, v))
    keys, values = (
        _write(cached, (layer,), 0, new, axis)
        for cached, new, axis in zip((state.keys, state.values), (k, v), SLOTS, strict=True)
    )
    return _constrained(KeysValues(keys, values, state.window), sharding)


def write_and_attend(
    state: KeysValues,
    layer: Int[Array, ""] | int,
    position: Int[Array, ""],
    call: AttentionCall,
    sharding: Sharding,
) -> tuple[KeysValues, Float[Array, "B 1 N H"]]:
    """Write the keys and values of one new token per row into its slot, and attend to the visible slots.

    Each device handles its own rows and key heads under `shard_map`: a layout can be pinned only there.

    Args:
        state: keys and values of all layers of a kind.
        layer: index of this layer among them.
        position: the number of tokens before this one, padding included.
        call: queries, keys and values of the new tokens, T = 1; `mask` has the visible slots, [B, 1, S].
        sharding: rows follow `batch`, heads `kv_heads`.
    """
    pinned = sharding.device.platform == "tpu"
    store = (state.keys, state.values)
    separate = isinstance(state.keys, tuple)
    own: Any = tuple(cached[layer] for cached in store) if separate else store

    def local(cache, layer, slot, token, visible, *sinks):
        at = () if separate else (layer,)
        keys, values = (
            _pin(_write(_pin(cached, axis, pinned), at, slot, new, axis), axis, pinned)
            for cached, new, axis in zip(cache, token[1:], SLOTS, strict=True)
        )
        return (keys, values), _read(token[0], keys[at], values[at], visible, call.scale, *sinks)

    replicated = jax.sharding.PartitionSpec()
    cache = partition_spec(sharding.rules, AXES[1:] if separate else AXES)
    token = partition_spec(sharding.rules, ("batch", None, "kv_heads", None))
    rows = partition_spec(sharding.rules, ("batch", None, None))
    sinks = () if call.sinks is None else (call.sinks,)
    heads = partition_spec(sharding.rules, ("kv_heads",))
    written, attended = jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(
            (cache, cache),
            replicated,
            replicated,
            (token, token, token),
            rows,
            *(heads for _ in sinks),
        ),
        out_specs=((cache, cache), token),
        check_vma=False,
    )(own, layer, position % state.slots, (call.q, call.k, call.v), call.mask, *sinks)
    if separate:
        written = tuple(replaced(cached, layer, new) for cached, new in zip(store, written, strict=True))
    keys, values = written
    return KeysValues(keys, values, state.window), attended


def last_layer(
    state: KeysValues, sharding: Sharding
) -> tuple[Float[Array, "B K H S"], Float[Array, "B K S H"]]:
    """Return the keys and values of the last layer of a kind.

    Layers that share them read these arrays: if a loop over such layers read the stack, a TPU would copy all
    of it for every token.
    """
    if isinstance(state.keys, tuple):
        return state.keys[-1], state.values[-1]
    pinned = sharding.device.platform == "tpu"

    def local(*stacks):
        return tuple(
            _pin(_pin(stack, axis, pinned)[-1], axis, pinned)
            for stack, axis in zip(stacks, SLOTS, strict=True)
        )

    stack, layer = (partition_spec(sharding.rules, axes) for axes in (AXES, AXES[1:]))
    read = jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(stack, stack), out_specs=(layer, layer), check_vma=False
    )
    return read(state.keys, state.values)


def attend_to_shared(
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    q: Float[Array, "B 1 N H"],
    visible: Bool[Array, "B 1 S"],
    scale: float,
    sharding: Sharding,
) -> Float[Array, "B 1 N H"]:
    """Attend to the keys and values of another layer, which hold those of the new token.

    Args:
        keys: the keys that `last_layer` returns.
        values: its values.
        q: queries of the new tokens.
        visible: the slots that each row's token reads.
        scale: the factor on the scores.
        sharding: as in `write_and_attend`.
    """
    pinned = sharding.device.platform == "tpu"

    def local(keys, values, q, visible):
        keys, values = (_pin(x, axis, pinned) for x, axis in zip((keys, values), SLOTS, strict=True))
        return _read(q, keys, values, visible, scale)

    layer = partition_spec(sharding.rules, AXES[1:])
    token = partition_spec(sharding.rules, ("batch", None, "kv_heads", None))
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(layer, layer, token, partition_spec(sharding.rules, ("batch", None, None))),
        out_specs=token,
        check_vma=False,
    )(keys, values, q, visible)


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
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B 1 N H"]:
    batch, head_dim = q.shape[0], q.shape[-1]
    keys, values = keys.astype(q.dtype), values.astype(q.dtype)
    grouped = q.reshape(batch, keys.shape[1], -1, head_dim)
    scores = einsum_float32("bkgh,bkhs->bkgs", grouped, keys) * scale
    scores = jnp.where(visible[:, :, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = softmax(scores, None if sinks is None else sinks.reshape(1, keys.shape[1], -1, 1))
    return jnp.einsum("bkgs,bksh->bkgh", weights.astype(values.dtype), values).reshape(q.shape)


def _pin(x: Array, slots: int, pinned: bool) -> Array:
    """Return x with the axis of slots as the minor dimension in memory."""
    order = [*(axis for axis in range(x.ndim) if axis != x.ndim + slots), x.ndim + slots]
    return with_layout_constraint(x, Layout(tuple(order))) if pinned else x
