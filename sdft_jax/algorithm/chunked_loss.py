"""A loss on logits that are never stored as a whole: heads are applied to one chunk of tokens at a time.

Logits are computed from hidden states inside a scan over chunks and freed after each chunk, so that no array
of shape [B, T, V] exists in either pass. The forward scan computes the gradients too (a custom VJP): a token
loss returns its value together with its gradient with respect to the logits. Under `shard_map` each device
has its own tokens and its own part of the vocabulary; scalars per token are all that is exchanged along the
vocabulary axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from sdft_jax.kernels.matmul import einsum_float32
from sdft_jax.models.head import Head, Product, products, softcap_of, softcap_slope, total
from sdft_jax.sharding import Sharding, check_divisible, partition_spec, release_axes

TokenLoss = Callable[..., tuple[Any, Float[Array, " n"], Float[Array, "n v"]]]
"""(logits of every role [n, v], targets [n], vocabulary axes) -> (statistics, values [n], d values / d
student logits [n, v]). `v` is this device's part of the vocabulary; sums over it go over the vocabulary
axes."""


class FactoredLogits(NamedTuple):
    """The logits of hidden states, which are never stored as a whole."""

    hidden: Float[Array, "B T D"]
    """Final hidden states."""
    head: Head
    """The output matrix [V, D], whose rows are tokens, with its adapter and softcap if it has them."""


Role = tuple[Product, ...]
"""The products [B, T, width] by [V, width] whose sum is the logits of a role, before their softcap."""
_WIDTHS = ("embed", None)
"""The logical axis of the width of each product: that of the head, and the rank of its adapter."""


class _Scan(NamedTuple):
    """The static part of a chunked loss."""

    token_loss: TokenLoss
    chunk: int
    sharding: Sharding
    softcaps: tuple[float | None, ...]
    """The bound of the logits of every role, the student's first."""


def chunked_loss(
    token_loss: TokenLoss,
    roles: tuple[FactoredLogits, ...],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
    sharding: Sharding,
) -> tuple[Float[Array, ""], Any]:
    """Return the sum over tokens of weight times loss, and the statistics of every token.

    Args:
        token_loss: the value and gradient of one chunk of tokens.
        roles: the logits of every role, the student's first; only the student's have gradients.
        targets: one token per position, passed to `token_loss`.
        weights: the constant weight of every token, 0 for a token that does not count.
        chunk: the number of tokens per device whose logits exist at one time.
        sharding: mesh and rules; tokens follow `batch` and `sequence`, heads `vocab` and `embed`.
    """
    student, *others = (products(*role) for role in roles)
    constants = jax.lax.stop_gradient((tuple(others), targets, weights))
    softcaps = tuple(softcap_of(role.head) for role in roles)
    return _weighted_loss(_Scan(token_loss, chunk, sharding, softcaps), student, *constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_loss(scan, student, others, targets, weights):
    return _sharded_scan(scan, False, (student, *others), targets, weights)


def _forward(scan, student, others, targets, weights):
    loss, stats, gradients = _sharded_scan(scan, True, (student, *others), targets, weights)
    return (loss, stats), gradients


def _backward(scan, gradients, cotangents):
    scale = cotangents[0]
    student = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
    return student, None, None, None


_weighted_loss.defvjp(_forward, _backward)


def _sharded_scan(scan: _Scan, with_gradients: bool, roles: tuple[Role, ...], targets, weights):
    """Return (loss, stats[, gradients of the student's products]) of the whole batch; each device scans its
    tokens and vocabulary.
    """
    # all devices that share a token also share its whole vocabulary
    sharding = release_axes(scan.sharding, "vocab", "batch", "sequence", "embed")
    check_divisible(sharding, "completions", ("batch", "sequence"), targets.shape)
    rules = sharding.rules
    hidden_spec = partition_spec(rules, ("batch", "sequence", None))
    token_spec = partition_spec(rules, ("batch", "sequence"))
    specs = [Product._make((hidden_spec, partition_spec(rules, ("vocab", width)))) for width in _WIDTHS]
    role_specs = tuple(tuple(specs[: len(role)]) for role in roles)
    token_axes, vocab_axes = sharding.split("batch", "sequence"), sharding.split("vocab")
    width_axes = [sharding.split(width) if width else () for width in _WIDTHS]

    def local(roles, targets, weights):
        dtype = roles[0][0].hidden.dtype

        def gathered(role: Role) -> Role:
            # cast before the gather: half the bytes to exchange
            return tuple(
                product._replace(matrix=gather(product.matrix.astype(dtype), axes, axis=1))
                for product, axes in zip(role, width_axes, strict=False)
            )

        loss, stats, gradients = _scan_chunks(
            scan, vocab_axes, with_gradients, tuple(map(gathered, roles)), targets, weights
        )
        loss = psum(loss, token_axes)
        if not with_gradients:
            return loss, stats
        summed = tuple(
            Product(d.hidden, _sum_over_tokens(d.matrix, token_axes, axes).astype(product.matrix.dtype))
            for d, product, axes in zip(gradients, roles[0], width_axes, strict=False)
        )
        return loss, stats, summed

    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(role_specs, token_spec, token_spec),
        out_specs=(PartitionSpec(), token_spec, *((role_specs[0],) if with_gradients else ())),
        check_vma=False,
    )(tuple(roles), targets, weights)


def _scan_chunks(scan: _Scan, vocab_axes, with_gradients: bool, roles: tuple[Role, ...], targets, weights):
    """Scan over chunks of this device's tokens; heads are not split along the width."""
    student, shape = roles[0], targets.shape
    count = math.prod(shape)
    chunk = min(scan.chunk, count)
    padding = -count % chunk

    def chunks(x):
        flat = x.reshape(count, *x.shape[len(shape) :])
        padded = jnp.pad(flat, [(0, padding)] + [(0, 0)] * (flat.ndim - 1))
        return padded.reshape(-1, chunk, *flat.shape[1:])

    def whole(x):
        return x.reshape(-1, *x.shape[2:])[:count].reshape(*shape, *x.shape[2:])

    def body(carry, inputs):
        loss, d_matrices = carry
        hiddens, target, weight = inputs
        logits = [
            total(map(Product, of_chunk, (product.matrix for product in role)), softcap)
            for of_chunk, role, softcap in zip(hiddens, roles, scan.softcaps, strict=True)
        ]
        stats, values, d_logits = scan.token_loss(*logits, target, vocab_axes)
        loss += jnp.sum(weight * values)
        if not with_gradients:
            return (loss, d_matrices), (stats, ())
        if scan.softcaps[0] is not None:
            d_logits = d_logits * softcap_slope(logits[0], scan.softcaps[0])
        d_logits = (d_logits * weight[:, None]).astype(hiddens[0][0].dtype)
        d_hiddens = [psum(einsum_float32("nv,vd->nd", d_logits, x.matrix), vocab_axes) for x in student]
        d_matrices = [
            d_matrix + einsum_float32("nv,nd->vd", d_logits, hidden)
            for d_matrix, hidden in zip(d_matrices, hiddens[0], strict=True)
        ]
        return (loss, d_matrices), (stats, [d.astype(d_logits.dtype) for d in d_hiddens])

    hiddens = [[chunks(product.hidden) for product in role] for role in roles]
    d_matrices = [jnp.zeros(x.matrix.shape, jnp.float32) for x in student] if with_gradients else []
    carry, xs = (jnp.zeros((), jnp.float32), d_matrices), (hiddens, chunks(targets), chunks(weights))
    (loss, d_matrices), (stats, d_hiddens) = jax.lax.scan(body, carry, xs)
    gradients = tuple(map(Product, map(whole, d_hiddens), d_matrices))
    return loss, jax.tree.map(whole, stats), gradients


def _sum_over_tokens(d_head: Float[Array, "v D"], token_axes: tuple[str, ...], embed_axes: tuple[str, ...]):
    """Sum the head gradients of all devices' tokens; each device keeps its own columns.

    The tokens are split over `token_axes`, the columns of the stored head over `embed_axes`; the two sets may
    overlap. Examples on a mesh data=2, fsdp=2:

    * Columns are not split: embed_axes = (). All devices sum over ("data", "fsdp").
    * FSDP: token_axes = ("data", "fsdp"), embed_axes = ("fsdp",). Sum over "data". The devices along "fsdp"
      hold different tokens and different columns, so a reduce-scatter over "fsdp" sums and splits at once.
    * Tokens over token_axes = ("data",) only, columns over ("fsdp",): the devices along "fsdp" have computed
      the same sum, so each one slices its own columns.
    """
    if not embed_axes:
        return psum(d_head, token_axes)
    if set(embed_axes) <= set(token_axes):
        summed = psum(d_head, tuple(axis for axis in token_axes if axis not in embed_axes))
        return jax.lax.psum_scatter(summed, embed_axes, scatter_dimension=1, tiled=True)
    summed = psum(d_head, token_axes)
    width = d_head.shape[1] // math.prod(jax.lax.axis_size(axis) for axis in embed_axes)
    return jax.lax.dynamic_slice_in_dim(summed, jax.lax.axis_index(embed_axes) * width, width, axis=1)


def largest(x: Float[Array, "n v"], axes: tuple[str, ...]) -> Float[Array, "n 1"]:
    """Return the maximum over the whole vocabulary, which is split over devices; 0 if it is not finite."""
    maximum = jnp.max(x, axis=-1, keepdims=True)
    maximum = jax.lax.pmax(maximum, axes) if axes else maximum
    return jnp.where(jnp.isfinite(maximum), maximum, 0.0)


def logsumexp(x: Float[Array, "n v"], axes: tuple[str, ...]) -> Float[Array, "n 1"]:
    """Return the logsumexp over the whole vocabulary."""
    maximum = largest(x, axes)
    return maximum + jnp.log(psum(jnp.sum(jnp.exp(x - maximum), axis=-1, keepdims=True), axes))


def token_ids(x: Float[Array, "n v"], axes: tuple[str, ...]) -> Int[Array, " v"]:
    """Return the token of each column of this device's part of the vocabulary."""
    shard = jax.lax.axis_index(axes) if axes else 0
    return shard * x.shape[-1] + jnp.arange(x.shape[-1])


def is_token(x: Float[Array, "n v"], target: Int[Array, " n"], axes: tuple[str, ...]) -> Array:
    """Return [n, v], True in the column of each row's target."""
    return token_ids(x, axes)[None, :] == target[:, None]


def vocab_sum(x: Float[Array, "n v"], axes: tuple[str, ...]) -> Float[Array, " n"]:
    """Return the sum over the whole vocabulary."""
    return psum(jnp.sum(x, axis=-1), axes)


def psum(x: Array, axes: tuple[str, ...]) -> Array:
    """Return the sum over mesh axes; x itself if `axes` is empty."""
    return jax.lax.psum(x, axes) if axes else x


def gather(x: Array, axes: tuple[str, ...], axis: int) -> Array:
    """Concatenate the parts of an array along mesh axes; return x itself if `axes` is empty."""
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x
