"""A loss on logits without the logits: heads applied a chunk of tokens at a time.

Logits are made from hidden states inside a scan over chunks and are gone when the chunk is done, so that no
array of shape [B, T, V] exists in either pass. The forward scan makes the gradients too (a custom VJP): a
token loss returns its value together with its gradient at the logits. Under `shard_map` each device holds
its own tokens and its own part of the vocabulary; only scalars per token cross the vocabulary axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sdft_jax.sharding import Sharding, check_divisible, give_way, partition_spec

TokenLoss = Callable[..., tuple[Any, Float[Array, " n"], Float[Array, "n v"]]]
"""(logits of every role [n, v], targets [n], vocabulary axes) -> (statistics, values [n], d values / d
student logits [n, v]). `v` is this device's part of the vocabulary, to be summed over those axes."""


def chunked_loss(
    token_loss: TokenLoss,
    hiddens: tuple[Float[Array, "B T D"], ...],
    heads: tuple[Float[Array, "V D"], ...],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
    sharding: Sharding,
) -> tuple[Float[Array, ""], Any]:
    """Sum over tokens of weight times loss, and the statistics of every token.

    Args:
        token_loss: value and gradient of one chunk of tokens.
        hiddens: final hidden states of every role, the student's first; only that one gets gradients.
        heads: rows are tokens; the student's first.
        targets: one token per position, handed to `token_loss`.
        weights: constant weight of every token, 0 where it does not count.
        chunk: tokens per device whose logits exist at one time.
        sharding: mesh and rules; tokens follow `batch` and `sequence`, heads `vocab` and `embed`.
    """
    constants = jax.lax.stop_gradient((hiddens[1:], heads[1:], targets, weights))
    return _weighted(token_loss, chunk, sharding, hiddens[0], heads[0], *constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weighted(token_loss, chunk, sharding, hidden, head, hiddens, heads, targets, weights):
    return _sharded_scan(token_loss, chunk, sharding, False, hidden, head, hiddens, heads, targets, weights)


def _forward(token_loss, chunk, sharding, *arrays):
    loss, stats, *gradients = _sharded_scan(token_loss, chunk, sharding, True, *arrays)
    return (loss, stats), gradients


def _backward(token_loss, chunk, sharding, gradients, cotangents):
    scale = cotangents[0]
    return (*(g * scale.astype(g.dtype) for g in gradients), None, None, None, None)


_weighted.defvjp(_forward, _backward)


def _sharded_scan(
    token_loss, chunk, sharding, with_gradients, hidden, head, hiddens, heads, targets, weights
):
    """(loss, stats[, d_hidden, d_head]) of the whole batch, each device on its own tokens and vocabulary."""
    # all devices that share a token also share its whole vocabulary
    sharding = give_way(sharding, "vocab", "batch", "sequence", "embed")
    check_divisible(sharding, "completions", ("batch", "sequence"), targets.shape)
    rules = sharding.rules
    hidden_spec = partition_spec(rules, ("batch", "sequence", None))
    token_spec = partition_spec(rules, ("batch", "sequence"))
    head_spec = partition_spec(rules, ("vocab", "embed"))
    token_axes = sharding.split("batch", "sequence")
    vocab_axes, embed_axes = sharding.split("vocab"), sharding.split("embed")

    def local(hidden, head, hiddens, heads, targets, weights):
        # cast before the gather: half the bytes on the wire
        whole = tuple(gather(h.astype(hidden.dtype), embed_axes, axis=1) for h in (head, *heads))
        loss, stats, d_hidden, d_head = _scan_chunks(
            token_loss, chunk, vocab_axes, with_gradients, (hidden, *hiddens), whole, targets, weights
        )
        loss = psum(loss, token_axes)
        if not with_gradients:
            return loss, stats
        return loss, stats, d_hidden, _sum_over_tokens(d_head, token_axes, embed_axes).astype(head.dtype)

    gradient_specs = (hidden_spec, head_spec) if with_gradients else ()
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(hidden_spec, head_spec, hidden_spec, head_spec, token_spec, token_spec),
        out_specs=(PartitionSpec(), token_spec, *gradient_specs),
        check_vma=False,
    )(hidden, head, hiddens, heads, targets, weights)


def _scan_chunks(token_loss, chunk, vocab_axes, with_gradients, hiddens, heads, targets, weights):
    """Scan over chunks of this device's tokens; heads are whole along the width, local in the vocabulary."""
    shape, width = targets.shape, hiddens[0].shape[-1]
    count = math.prod(shape)
    chunk = min(chunk, count)
    padding = -count % chunk

    def chunks(x, *trailing):
        flat = x.reshape(count, *trailing)
        return jnp.pad(flat, [(0, padding)] + [(0, 0)] * len(trailing)).reshape(-1, chunk, *trailing)

    def body(carry, inputs):
        loss, d_head = carry
        hiddens, target, weight = inputs
        logits = [_logits(hidden, head) for hidden, head in zip(hiddens, heads, strict=True)]
        stats, values, d_logits = token_loss(*logits, target, vocab_axes)
        loss += jnp.sum(weight * values)
        if not with_gradients:
            return (loss, d_head), (stats, None)
        d_logits = (d_logits * weight[:, None]).astype(hiddens[0].dtype)
        d_hidden = jnp.einsum("nv,vd->nd", d_logits, heads[0], preferred_element_type=jnp.float32)
        d_head += jnp.einsum("nv,nd->vd", d_logits, hiddens[0], preferred_element_type=jnp.float32)
        return (loss, d_head), (stats, psum(d_hidden, vocab_axes).astype(hiddens[0].dtype))

    xs = (tuple(chunks(hidden, width) for hidden in hiddens), chunks(targets), chunks(weights))
    d_head = jnp.zeros(heads[0].shape if with_gradients else (), jnp.float32)
    (loss, d_head), (stats, d_hidden) = jax.lax.scan(body, (jnp.zeros((), jnp.float32), d_head), xs)
    stats = jax.tree.map(lambda x: x.reshape(-1)[:count].reshape(shape), stats)
    if with_gradients:
        d_hidden = d_hidden.reshape(-1, width)[:count].reshape(*shape, width)
    return loss, stats, d_hidden, d_head


def _sum_over_tokens(d_head: Float[Array, "v D"], token_axes: tuple[str, ...], embed_axes: tuple[str, ...]):
    """Sum of all devices' contributions to the head, each device keeping its own columns."""
    if not embed_axes:
        return psum(d_head, token_axes)
    if set(embed_axes) <= set(token_axes):
        summed = psum(d_head, tuple(axis for axis in token_axes if axis not in embed_axes))
        return jax.lax.psum_scatter(summed, embed_axes, scatter_dimension=1, tiled=True)
    summed = psum(d_head, token_axes)
    width = d_head.shape[1] // math.prod(jax.lax.axis_size(axis) for axis in embed_axes)
    return jax.lax.dynamic_slice_in_dim(summed, jax.lax.axis_index(embed_axes) * width, width, axis=1)


def _logits(hidden: Float[Array, "n D"], head: Float[Array, "v D"]) -> Float[Array, "n v"]:
    return jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)


def largest(x: Float[Array, "n v"], axes: tuple[str, ...]) -> Float[Array, "n 1"]:
    """Over the whole vocabulary, of which each device holds a part; 0 where it is not finite."""
    found = jnp.max(x, axis=-1, keepdims=True)
    found = jax.lax.pmax(found, axes) if axes else found
    return jnp.where(jnp.isfinite(found), found, 0.0)


def logsumexp(x: Float[Array, "n v"], axes: tuple[str, ...]) -> Float[Array, "n 1"]:
    """Over the whole vocabulary."""
    most = largest(x, axes)
    return most + jnp.log(psum(jnp.sum(jnp.exp(x - most), axis=-1, keepdims=True), axes))


def is_token(x: Float[Array, "n v"], target: Int[Array, " n"], axes: tuple[str, ...]) -> Array:
    """[n, v], True in the column of each row's target."""
    shard = jax.lax.axis_index(axes) if axes else 0
    return (shard * x.shape[-1] + jnp.arange(x.shape[-1]))[None, :] == target[:, None]


def total(x: Float[Array, "n v"], axes: tuple[str, ...]) -> Float[Array, " n"]:
    """Sum over the whole vocabulary."""
    return psum(jnp.sum(x, axis=-1), axes)


def psum(x: Array, axes: tuple[str, ...]) -> Array:
    """Sum over mesh axes, of which there may be none."""
    return jax.lax.psum(x, axes) if axes else x


def gather(x: Array, axes: tuple[str, ...], axis: int) -> Array:
    """Concatenate the parts that lie along mesh axes, of which there may be none."""
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x
