"""Attention of whole sequences by the device's own kernel, which never holds the scores [B, N, T, T].

| kernel   | where | what it is                                                             |
| -------- | ----- | ---------------------------------------------------------------------- |
| `splash` | TPU   | JAX's Pallas kernel; on other devices interpreted, for tests           |
| `cudnn`  | GPU   | cuDNN's flash attention, by `jax.nn.dot_product_attention`             |
| `xla`    | all   | `attention.attention`: plain JAX, which these must equal               |

Each device runs the kernel on its own rows and heads, under `shard_map`: the compiler cannot split a kernel.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.sharding import Sharding, mesh_axes, partition_spec

Kernel = Literal["splash", "cudnn", "xla"]
LANES = 128
"""Splash reads keys in multiples of them."""
LARGEST_TILE = 512
"""Queries and keys of a splash tile: as large as it pays on every generation."""
CUDNN_HEAD_DIM = 128
"""The largest that cuDNN takes on every GPU."""


def choose_kernel(choice: str, device: Any, dtype: str, head_dim: int) -> Kernel:
    """The kernel of `auto` for a device: splash on TPU; cuDNN on NVIDIA GPUs, in bfloat16 only; else XLA."""
    if choice != "auto":
        return choice  # type: ignore[return-value]
    if device.platform == "tpu":
        return "splash"
    fits = dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= CUDNN_HEAD_DIM
    if device.platform == "gpu" and fits and "cuda" in device.client.platform_version:
        return "cudnn"
    return "xla"


def fused_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Bool[Array, "B T"],
    window: int | None,
    scale: float,
    kernel: Kernel,
    sharding: Sharding | None,
) -> Float[Array, "B T N H"]:
    """Causal attention among the real tokens of each row, which are contiguous; `attention` in other ways.

    Args:
        q, k, v: of one layer; query head n reads key head n // (N // K).
        mask: True on real tokens. What padding reads is finite, and ignored by callers.
        window: positions that a query sees, itself included; None for all before it.
        scale: factor on the scores.
        kernel: `splash` or `cudnn`.
        sharding: rows follow `batch`, heads `heads` and `kv_heads`; sequences are whole on each device.
    """
    device = jax.devices()[0] if sharding is None else sharding.mesh.devices.flat[0]
    attend = functools.partial(_cudnn, window=window, scale=scale)
    if kernel == "splash":
        attend = functools.partial(_splash, window=window, scale=scale, interpret=device.platform != "tpu")
    if sharding is None:
        return attend(q, k, v, mask)
    query_spec = partition_spec(sharding.rules, ("batch", None, "heads", None))
    key_spec = partition_spec(sharding.rules, ("batch", None, "kv_heads", None))
    select = functools.partial(_own_keys, group=q.shape[2] // k.shape[2], sharding=sharding)

    def local(q: Array, k: Array, v: Array, mask: Array) -> Array:
        return attend(q, select(k, q.shape[2]), select(v, q.shape[2]), mask)

    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(query_spec, key_spec, key_spec, partition_spec(sharding.rules, ("batch", None))),
        out_specs=query_spec,
        check_vma=False,
    )(q, k, v, mask)


def _own_keys(x: Float[Array, "B T k H"], heads: int, group: int, sharding: Sharding) -> Array:
    """Key heads of this device's query heads, where queries are split further than keys are."""
    axes = mesh_axes(sharding.rules.heads)
    if axes == mesh_axes(sharding.rules.kv_heads) or sharding.size("heads") == sharding.size("kv_heads") == 1:
        return x
    x = jax.lax.all_gather(x, mesh_axes(sharding.rules.kv_heads), axis=2, tiled=True)
    first = jax.lax.axis_index(axes) * heads if axes else 0
    return x[:, :, (first + jnp.arange(heads)) // group]


def _splash(
    q: Array, k: Array, v: Array, mask: Array, window: int | None, scale: float, interpret: bool
) -> Array:
    # here, since importing Pallas takes a second that nothing else needs
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = q.shape[1], q.shape[2]
    tile = min(LARGEST_TILE, -(-length // LANES) * LANES)
    padded = -(-length // tile) * tile
    shape = (padded, padded)
    causal = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), offset=0)
    run = splash.make_splash_mha(
        masks.MultiHeadMask([causal] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(*(tile,) * 8),  # of every one of its passes
        interpret=interpret,
    )

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, padded - length)] + [(0, 0)] * (x.ndim - 2))

    # padding is a segment of its own: its queries find keys too, and real ones find none of its
    segments = pad(mask.astype(jnp.int32))
    q, k, v = (pad(x).swapaxes(1, 2) for x in ((q * scale).astype(q.dtype), k, v))
    attended = jax.vmap(run)(q, k, v, splash.SegmentIds(segments, segments))
    return attended.swapaxes(1, 2)[:, :length]


def _cudnn(
    q: Array, k: Array, v: Array, mask: Array, window: int | None, scale: float, implementation: Any = "cudnn"
) -> Array:
    """Rows are moved to the left edge and back: cuDNN knows lengths; a mask would cost the scores' memory."""
    first = jnp.argmax(mask, axis=1)
    lengths = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
    attended = jax.nn.dot_product_attention(
        *(_roll(x, first) for x in (q, k, v)),
        scale=scale,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    return jnp.where(mask[:, :, None, None], _roll(attended, -first), 0)


@jax.custom_vjp
def _roll(x: Float[Array, "B T N H"], first: Int[Array, " B"]) -> Float[Array, "B T N H"]:
    """Each row from its position `first` on, around the end."""
    columns = (jnp.arange(x.shape[1])[None, :] + first[:, None]) % x.shape[1]
    return jnp.take_along_axis(x, columns[:, :, None, None], axis=1, mode="promise_in_bounds")


def _roll_forward(x: Array, first: Array) -> tuple[Array, Array]:
    return _roll(x, first), first


def _roll_backward(first: Array, d_rolled: Array) -> tuple[Array, None]:
    """Rolled back: JAX's own would add every number into zeros, atomically."""
    return _roll(d_rolled, -first), None


_roll.defvjp(_roll_forward, _roll_backward)
