"""The per-token divergence between student and teacher, exact over the vocabulary or on its most likely
tokens.

With S and T the two next-token distributions, every divergence l here has the same gradient with respect to
the student's logits s: the Jacobian of the softmax applied to a pointwise q,

    dl/ds = q - S * sum(q),    q = S * dl/dS,

so that a direction is one line of `_pointwise`. `chunked_loss` computes logits for one chunk of tokens at a
time.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdft_jax.algorithm.chunked_loss import (
    FactoredLogits,
    chunked_loss,
    gather,
    is_token,
    largest,
    logsumexp,
    vocab_sum,
)
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.sharding import Sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStats:
    """The statistics of each token in one scoring pass, without gradient, in nats.

    `logprob` is the student's for the target token at temperature 1; everything else is at the divergence's
    temperature. `log_ratio` is log T - log S of the target token, the implicit reward.
    """

    divergence: Float[Array, "*B T"]
    forward_kl: Float[Array, "*B T"]
    reverse_kl: Float[Array, "*B T"]
    student_entropy: Float[Array, "*B T"]
    teacher_entropy: Float[Array, "*B T"]
    logprob: Float[Array, "*B T"]
    log_ratio: Float[Array, "*B T"]


def divergence(
    student: FactoredLogits,
    teacher: FactoredLogits,
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    config: DivergenceConfig,
    sharding: Sharding,
) -> tuple[Float[Array, ""], TokenStats]:
    """Return the weighted sum of per-token divergences; only the student's logits have gradients.

    Args:
        student: the head, and hidden states whose position t predicts `targets[:, t]`.
        teacher: the same positions under the teacher's prompt; its head may be the student's.
        targets: the completion's tokens, for log-probabilities and the sampled-token estimator.
        weights: the constant weight of every token, 0 for a token that does not count; they include the
            aggregation.
        config: direction (`alpha`), support, temperature, chunk size.
        sharding: mesh and rules; tokens follow `batch` and `sequence`, heads `vocab` and `embed`.

    Returns:
        The scalar sum, and the statistics of each token.
    """
    token_loss = functools.partial(_chunk, config=config)
    return chunked_loss(token_loss, (student, teacher), targets, weights, config.chunk, sharding)


FLOOR = -1e30
"""Replaces logits below it, so that a token with probability 0 has finite terms."""


def _chunk(
    student: Float[Array, "n v"],
    teacher: Float[Array, "n v"],
    target: Int[Array, " n"],
    vocab_axes: tuple[str, ...],
    *,
    config: DivergenceConfig,
) -> tuple[TokenStats, Float[Array, " n"], Float[Array, "n v"]]:
    """Return the statistics and divergences of a chunk, and their gradient with respect to the student's
    logits.
    """
    over_v = functools.partial(vocab_sum, axes=vocab_axes)
    is_target = is_token(student, target, vocab_axes)

    def pick(x: Float[Array, "n v"]) -> Float[Array, " n"]:
        """Return the target's number in each row."""
        return over_v(jnp.where(is_target, x, 0.0))

    def mean(p: Float[Array, "n v"], x: Float[Array, "n v"]) -> Float[Array, " n"]:
        """Return the mean of x under the unnormalized probabilities p."""
        return over_v(p * x) / over_v(p)

    # Unnormalized probabilities need one pass over the logits for all sums. Finite numbers let a token with
    # probability 0 add 0; a mask would need one more pass on a GPU.
    s, t = (
        jnp.where(x < FLOOR, FLOOR, x - largest(x, vocab_axes))
        for x in (student / config.temperature, teacher / config.temperature)
    )
    e_s, e_t = jnp.exp(s), jnp.exp(t)
    log_z_s, log_z_t = jnp.log(over_v(e_s)), jnp.log(over_v(e_t))
    stats = TokenStats(
        divergence=jnp.zeros_like(log_z_s),
        forward_kl=mean(e_t, t - s) + (log_z_s - log_z_t),
        reverse_kl=mean(e_s, s - t) + (log_z_t - log_z_s),
        student_entropy=log_z_s - mean(e_s, s),
        teacher_entropy=log_z_t - mean(e_t, t),
        logprob=pick(student) - logsumexp(student, vocab_axes)[:, 0],
        log_ratio=pick(t - s) + (log_z_s - log_z_t),
    )

    log_s, log_t = s - log_z_s[:, None], t - log_z_t[:, None]
    if config.support == "sampled":
        value = -stats.log_ratio
        d_logits = value[:, None] * (is_target - jnp.exp(log_s))
    elif config.support == "full":
        value, d_logits = _full(log_s, log_t, stats, config.alpha, vocab_axes)
    else:
        keep = _support(log_s, log_t, config, vocab_axes)
        value, d_logits = _supported(log_s, log_t, keep, config, vocab_axes)
    return dataclasses.replace(stats, divergence=value), value, d_logits / config.temperature


def _full(log_s, log_t, stats: TokenStats, alpha: float, vocab_axes):
    """Return the divergence over the whole vocabulary and its gradient; `stats` has the sums of a KL."""
    terms, q = _pointwise(log_s, log_t, alpha)
    if alpha == 1:
        value = sum_q = stats.reverse_kl
    elif alpha == 0:
        value, sum_q = stats.forward_kl, -jnp.ones_like(stats.forward_kl)
    else:
        value, sum_q = vocab_sum(terms, vocab_axes), vocab_sum(q, vocab_axes)
    return value, q - jnp.exp(log_s) * sum_q[:, None]


def _supported(log_s, log_t, keep, config: DivergenceConfig, vocab_axes):
    """Return the divergence over the tokens in `keep` and its gradient with respect to the logits."""
    over_v = functools.partial(vocab_sum, axes=vocab_axes)

    def inside(x: Float[Array, "n v"]) -> Float[Array, "n v"]:
        return jnp.where(keep, x, 0.0)

    if config.tail == "renormalise":
        log_s -= logsumexp(jnp.where(keep, log_s, -jnp.inf), vocab_axes)
        log_t -= logsumexp(jnp.where(keep, log_t, -jnp.inf), vocab_axes)
        terms, q = map(inside, _pointwise(log_s, log_t, config.alpha))
        return over_v(terms), q - inside(jnp.exp(log_s)) * over_v(q)[:, None]
    # The tail is one more token, whose probability is the sum of all tokens outside `keep`.
    log_tails = [logsumexp(jnp.where(keep, -jnp.inf, x), vocab_axes) for x in (log_s, log_t)]
    tail_s, tail_t = (jnp.maximum(tail, jnp.finfo(jnp.float32).min) for tail in log_tails)
    terms, q = map(inside, _pointwise(log_s, log_t, config.alpha))
    tail_term, tail_q = _pointwise(tail_s, tail_t, config.alpha)
    share = jnp.where(keep, 0.0, jnp.exp(log_s - tail_s))
    d_logits = q + share * tail_q - jnp.exp(log_s) * (over_v(q)[:, None] + tail_q)
    return over_v(terms) + tail_term[:, 0], d_logits


def _pointwise(log_s: Array, log_t: Array, alpha: float) -> tuple[Array, Array]:
    """Return the terms whose sum is the divergence, and q = S * d(divergence)/dS up to a multiple of S."""
    s, t = jnp.exp(log_s), jnp.exp(log_t)
    if alpha == 1:
        terms = s * (log_s - log_t)
        return terms, terms
    if alpha == 0:
        return t * (log_t - log_s), -t
    log_m = jnp.logaddexp(math.log1p(-alpha) + log_s, math.log(alpha) + log_t)
    from_student = (1 - alpha) * s * (log_s - log_m)
    return alpha * t * (log_t - log_m) + from_student, from_student


def _support(log_s, log_t, config: DivergenceConfig, vocab_axes):
    """Return the mask of the tokens that the divergence sums over, including all ties with the k-th."""
    by_role = {"student": [log_s], "teacher": [log_t], "union": [log_s, log_t]}[config.support]
    masks = [x >= _kth_largest(x, config.top_k, vocab_axes) for x in by_role]
    return functools.reduce(jnp.logical_or, masks)


def _kth_largest(x: Float[Array, "n v"], k: int, vocab_axes: tuple[str, ...]) -> Float[Array, "n 1"]:
    local = jax.lax.top_k(x, min(k, x.shape[-1]))[0]
    everywhere = gather(local, vocab_axes, axis=1)
    return jax.lax.top_k(everywhere, min(k, everywhere.shape[-1]))[0][:, -1:]
