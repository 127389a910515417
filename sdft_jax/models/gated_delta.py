"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464), and the short convolution before it.

Instead of the keys and values of all tokens, a head has one matrix S from keys to values. A token makes it
forget a part of everything, and then replaces what it returns for the key k by the value v, or a part beta
of it:

    S_t = exp(g_t) S_{t-1} + k_t beta_t (v_t - k_t^T exp(g_t) S_{t-1})^T,    output_t = q_t^T S_t

For example, with one dimension, k = q = 1 and S = 2: the value 4 with exp(g) = 1/2 and beta = 1/2 first
halves S to 1, and then moves it half of the way to 4, so that S and the output are 2.5. A token with g = 0
and beta = 0 changes nothing: that is padding.

`gated_delta_step` is this recurrence for one token. `gated_delta_chunks` computes a chunk of 64 tokens at
once from the matrix S before it (section 3 of the paper). With G_i the sum of the first i values of g, the
change u_i that token i makes depends on those of the earlier ones, which is a triangular system:

    u_i + beta_i sum_{j<i} exp(G_i - G_j) (k_i . k_j) u_j = beta_i (v_i - exp(G_i) S^T k_i)
    output_i = exp(G_i) S^T q_i + sum_{j<=i} exp(G_i - G_j) (q_i . k_j) u_j
    S_next = exp(G_64) S + sum_j exp(G_64 - G_j) k_j u_j^T

Everything is float32: exponents add up, and the system subtracts numbers that are nearly equal.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 64
"""Number of tokens that are computed at once."""

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class DeltaInputs(NamedTuple):
    """The inputs of the rule for each token, with G heads."""

    q: Float[Array, "B T G K"]
    k: Float[Array, "B T G K"]
    v: Float[Array, "B T G P"]
    log_decay: Float[Array, "B T G"]
    """g, at most 0; 0 for padding."""
    beta: Float[Array, "B T G"]
    """The part that is replaced, from 0 to 1; 0 for padding."""


def gated_delta(
    inputs: DeltaInputs, matrix: Float[Array, "B G K P"]
) -> tuple[Float[Array, "B T G P"], Float[Array, "B G K P"]]:
    """Return the outputs in float32, and the matrix after the last token; q and k are normalized here.

    As in transformers, q and k have length 1 (with 1e-6 under the root), and q is divided by sqrt(K).
    """
    q, k, v, log_decay, beta = (x.astype(jnp.float32) for x in inputs)
    inputs = DeltaInputs(_unit(q) * q.shape[-1] ** -0.5, _unit(k), v, log_decay, beta)
    return (gated_delta_step if q.shape[1] == 1 else gated_delta_chunks)(inputs, matrix)


def gated_delta_step(
    inputs: DeltaInputs, matrix: Float[Array, "B G K P"]
) -> tuple[Float[Array, "B 1 G P"], Float[Array, "B G K P"]]:
    """Return the output of one token, and the matrix after it.

    The matrix is read twice and written once, since q^T S_t is exp(g_t) q^T S_{t-1} + (q . k) change.
    """
    q, k, v, log_decay, beta = (x[:, 0] for x in inputs)
    decay = jnp.exp(log_decay)[..., None]
    of_key, of_query = jnp.moveaxis(_einsum("bgrk,bgkp->bgrp", jnp.stack([k, q], axis=2), matrix), 2, 0)
    change = beta[..., None] * (v - decay * of_key)
    output = decay * of_query + jnp.sum(q * k, axis=-1, keepdims=True) * change
    return output[:, None], decay[..., None] * matrix + k[..., :, None] * change[..., None, :]


def gated_delta_chunks(
    inputs: DeltaInputs, matrix: Float[Array, "B G K P"]
) -> tuple[Float[Array, "B T G P"], Float[Array, "B G K P"]]:
    """Return the outputs of whole sequences, and the matrix after them.

    The backward pass reads the matrix before each chunk, and computes the rest again.
    """
    length = inputs.v.shape[1]
    size = min(CHUNK, length)

    def chunks(x: Array) -> Float[Array, "n B G c ..."]:
        x = jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 3, 2)

    step = jax.checkpoint(_chunk, prevent_cse=False)
    matrix, outputs = jax.lax.scan(step, matrix, DeltaInputs(*map(chunks, inputs)))
    outputs = jnp.moveaxis(jnp.moveaxis(outputs, 2, 3), 0, 1)
    return outputs.reshape(outputs.shape[0], -1, *outputs.shape[3:])[:, :length], matrix


def _chunk(
    matrix: Float[Array, "B G K P"], inputs: DeltaInputs
) -> tuple[Float[Array, "B G K P"], Float[Array, "B G c P"]]:
    """Return the matrix after a chunk, and its outputs; the inputs are [B, G, c, ...]."""
    q, k, v, log_decay, beta = inputs
    decay = _decays(log_decay)
    since_start = jnp.exp(jnp.cumsum(log_decay, axis=-1))[..., None]
    read = v - since_start * _einsum("bgck,bgkp->bgcp", k, matrix)
    system = beta[..., None] * decay * _einsum("bgik,bgjk->bgij", k, k)
    change = jax.lax.linalg.triangular_solve(
        system, beta[..., None] * read, left_side=True, lower=True, unit_diagonal=True
    )
    output = since_start * _einsum("bgck,bgkp->bgcp", q, matrix)
    output += _einsum("bgij,bgjp->bgip", decay * _einsum("bgik,bgjk->bgij", q, k), change)
    until_end = decay[..., -1, :, None]
    matrix = since_start[..., -1:, :] * matrix + _einsum("bgck,bgcp->bgkp", until_end * k, change)
    return matrix, output


def _decays(log_decay: Float[Array, "B G c"]) -> Float[Array, "B G c c"]:
    """Return exp(G_i - G_j) for each token i and its earlier tokens j, and 0 for later tokens j.

    The exponents are sums of the values of g between j and i. The difference of G_i and G_j, which grow with
    the chunk, would lose digits: with g = -10, the decay of the last token would be off by 4e-5 of itself.
    """
    ones = jnp.ones((*log_decay.shape, log_decay.shape[-1]), bool)
    values = jnp.where(jnp.tril(ones, -1), log_decay[..., :, None], 0.0)
    up_to = jnp.tril(ones)
    # a sum over the tokens l with j < l <= i, as a product, which a TPU computes faster than `cumsum`
    exponents = _einsum("bgil,bglj->bgij", up_to.astype(jnp.float32), values)
    return jnp.where(up_to, jnp.exp(exponents), 0.0)


def causal_convolution(
    x: Float[Array, "B T C"], weight: Float[Array, "C S"], tail: Float[Array, "B S-1 C"]
) -> tuple[Float[Array, "B T C"], Float[Array, "B S-1 C"]]:
    """Return the convolution of each channel with its own weights, and the last inputs for the next call.

    For example, with the weights (1, 2) and the tail (5), the inputs 1 2 give 1*5 + 2*1 and 1*1 + 2*2.
    """
    length, width = x.shape[1], weight.shape[1]
    padded = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
    terms = (padded[:, i : i + length] * weight[None, None, :, i] for i in range(width))
    return functools.reduce(jnp.add, terms), padded[:, length:]


def _unit(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)
