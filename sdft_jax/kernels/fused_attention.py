"""Attention over whole sequences by a platform's own kernel, which never stores the scores [B, N, T, T].

| kernel   | platform | implementation                                              |
| -------- | -------- | ----------------------------------------------------------- |
| `splash` | TPU      | JAX's Pallas kernel; interpreted on other devices, for tests |
| `cudnn`  | GPU      | cuDNN's flash attention, `jax.nn.dot_product_attention`      |
| `xla`    | all      | `attention.attention`: plain JAX, the reference for both     |

Each device runs the kernel on its own rows and heads under `shard_map`: the compiler cannot partition a
kernel.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdft_jax.kernels.attention import AttentionCall
from sdft_jax.sharding import Sharding, mesh_axes, partition_spec

Kernel = Literal["splash", "cudnn", "xla"]
LANES = 128
"""Splash reads keys in multiples of this number."""
LARGEST_TILE = 512
"""Number of queries and keys in a splash tile: the largest that is faster on every TPU generation."""
CUDNN_HEAD_DIM = 128
"""The largest head dimension that cuDNN supports on every GPU."""


def choose_kernel(choice: str, device: Any, dtype: str, head_dim: int) -> Kernel:
    """Return the kernel for `choice`; `auto` is splash on TPU, cuDNN on NVIDIA GPUs in bfloat16, else XLA."""
    if choice != "auto":
        return choice  # type: ignore[return-value]
    if device.platform == "tpu":
        return "splash"
    fits = dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= CUDNN_HEAD_DIM
    if device.platform == "gpu" and fits and "cuda" in device.client.platform_version:
        return "cudnn"
    return "xla"


def fused_attention(call: AttentionCall, kernel: Kernel, sharding: Sharding) -> Float[Array, "B T N H"]:
    """Return the causal attention among the real tokens of each row, which must be contiguous.

    Args:
        call: the attention of one layer; its window is a Python number, since a kernel is compiled for it.
        kernel: `splash` or `cudnn`.
        sharding: rows follow `batch`, heads `heads` and `kv_heads`; every device has whole sequences.
    """
    attend = _cudnn
    if kernel == "splash":
        attend = functools.partial(_splash, interpret=sharding.device.platform != "tpu")
    query_spec = partition_spec(sharding.rules, ("batch", None, "heads", None))
    key_spec = partition_spec(sharding.rules, ("batch", None, "kv_heads", None))
    select = functools.partial(_own_keys, group=call.q.shape[2] // call.k.shape[2], sharding=sharding)

    def local(q: Array, k: Array, v: Array, mask: Array) -> Array:
        heads = q.shape[2]
        return attend(dataclasses.replace(call, q=q, k=select(k, heads), v=select(v, heads), mask=mask))

    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(query_spec, key_spec, key_spec, partition_spec(sharding.rules, ("batch", None))),
        out_specs=query_spec,
        check_vma=False,
    )(call.q, call.k, call.v, call.mask)


def _own_keys(x: Float[Array, "B T k H"], heads: int, group: int, sharding: Sharding) -> Array:
    """Return the key heads of this device's query heads, for rules that split queries into more parts."""
    axes = mesh_axes(sharding.rules.heads)
    if axes == mesh_axes(sharding.rules.kv_heads) or sharding.size("heads") == sharding.size("kv_heads") == 1:
        return x
    x = jax.lax.all_gather(x, mesh_axes(sharding.rules.kv_heads), axis=2, tiled=True)
    first = jax.lax.axis_index(axes) * heads if axes else 0
    return x[:, :, (first + jnp.arange(heads)) // group]


def _past(call: AttentionCall) -> int | None:
    """Return the number of earlier positions in the window; a kernel needs a Python number."""
    return None if call.window is None else int(call.window) - 1


def _splash(call: AttentionCall, interpret: bool) -> Array:
    # imported here: Pallas takes a second to import, and only a TPU needs it
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = call.q.shape[1], call.q.shape[2]
    tile = min(LARGEST_TILE, -(-length // LANES) * LANES)
    padded = -(-length // tile) * tile
    shape, past = (padded, padded), _past(call)
    causal = masks.CausalMask(shape) if past is None else masks.LocalMask(shape, (past, 0), offset=0)
    run = splash.make_splash_mha(
        masks.MultiHeadMask([causal] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(*(tile,) * 8),  # the forward and backward passes have eight sizes
        interpret=interpret,
    )

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, padded - length)] + [(0, 0)] * (x.ndim - 2))

    # Padding is a segment of its own: its queries read some keys, and real queries read none of them.
    segments = pad(call.mask.astype(jnp.int32))
    q, k, v = (pad(x).swapaxes(1, 2) for x in ((call.q * call.scale).astype(call.q.dtype), call.k, call.v))
    attended = jax.vmap(run)(q, k, v, splash.SegmentIds(segments, segments))
    return attended.swapaxes(1, 2)[:, :length]


def _cudnn(call: AttentionCall, implementation: Any = "cudnn") -> Array:
    """Return the attention by cuDNN; rows are rolled to the left edge, and the result is rolled back.

    cuDNN reads the length of each row; a mask would need as much memory as the scores.
    """
    first, past = jnp.argmax(call.mask, axis=1), _past(call)
    lengths = jnp.maximum(jnp.sum(call.mask, axis=1, dtype=jnp.int32), 1)
    attended = jax.nn.dot_product_attention(
        *(_roll(x, first) for x in (call.q, call.k, call.v)),
        scale=call.scale,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if past is None else (past, 0),
        implementation=implementation,
    )
    return jnp.where(call.mask[:, :, None, None], _roll(attended, -first), 0)


@jax.custom_vjp
def _roll(x: Float[Array, "B T N H"], first: Int[Array, " B"]) -> Float[Array, "B T N H"]:
    """Return each row rotated so that position `first` becomes position 0."""
    columns = (jnp.arange(x.shape[1])[None, :] + first[:, None]) % x.shape[1]
    return jnp.take_along_axis(x, columns[:, :, None, None], axis=1, mode="promise_in_bounds")


def _roll_forward(x: Array, first: Array) -> tuple[Array, Array]:
    return _roll(x, first), first


def _roll_backward(first: Array, d_rolled: Array) -> tuple[Array, None]:
    """Rotate back: JAX's own gradient is a scatter-add into zeros, with atomic additions on a GPU."""
    return _roll(d_rolled, -first), None


_roll.defvjp(_roll_forward, _roll_backward)
