"""Per-token divergence between student and teacher, exact over the vocabulary or on its likeliest tokens.

With S and T the two next-token distributions, every divergence l here has the same gradient with respect to
the student's logits s: the softmax Jacobian applied to a pointwise q,

    dl/ds = q - S * sum(q),    q = S * dl/dS,

so that a direction is one line of `_pointwise`. `chunked.py` sees to it that logits exist for one chunk of
tokens at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdft_jax.algorithm.chunked_loss import chunked_loss, gather, is_token, largest, logsumexp, total
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.sharding import Sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStats:
    """What one scoring pass knows of each token, without gradient, in nats.

    `logprob` is the student's for the sampled token at temperature 1; everything else is at the
    divergence's temperature. `log_ratio` is log T - log S of the sampled token, the implicit reward.
    """

    divergence: Float[Array, "*B T"]
    forward_kl: Float[Array, "*B T"]
    reverse_kl: Float[Array, "*B T"]
    student_entropy: Float[Array, "*B T"]
    teacher_entropy: Float[Array, "*B T"]
    logprob: Float[Array, "*B T"]
    log_ratio: Float[Array, "*B T"]


def divergence(
    student_hidden: Float[Array, "B T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "B T D"],
    teacher_head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    config: DivergenceConfig,
    sharding: Sharding,
) -> tuple[Float[Array, ""], TokenStats]:
    """Weighted sum of per-token divergences; gradients reach the student's hidden states and head only.

    Args:
        student_hidden: final hidden states; position t predicts `targets[:, t]`.
        student_head: rows are tokens.
        teacher_hidden: the same positions under the teacher's prompt.
        teacher_head: may be the student's.
        targets: the sampled completion, for log-probabilities and the sampled-token estimator.
        weights: constant weight of every token, 0 where it does not count; they carry the aggregation.
        config: direction (`alpha`), support, temperature, chunk size.
        sharding: mesh and rules; tokens follow `batch` and `sequence`, heads `vocab` and `embed`.

    Returns:
        The scalar sum, and the per-token statistics.
    """
    return chunked_loss(
        functools.partial(_chunk, config=config),
        (student_hidden, teacher_hidden),
        (student_head, teacher_head),
        targets,
        weights,
        config.chunk,
        sharding,
    )


LEAST = -1e30
"""What stands for logits below it."""


def _chunk(
    student: Float[Array, "n v"],
    teacher: Float[Array, "n v"],
    target: Int[Array, " n"],
    vocab_axes: tuple[str, ...],
    *,
    config: DivergenceConfig,
) -> tuple[TokenStats, Float[Array, " n"], Float[Array, "n v"]]:
    """Statistics and divergences of a chunk, and their gradient with respect to the student's logits."""
    over_v = functools.partial(total, axes=vocab_axes)
    is_target = is_token(student, target, vocab_axes)
    pick = lambda x: over_v(jnp.where(is_target, x, 0.0))  # noqa: E731
    mean = lambda p, x: over_v(p * x) / over_v(p)  # noqa: E731

    # From unnormalised probabilities, so that all sums are made in one pass over the logits; and from finite
    # numbers, so that a token without probability adds 0, which a mask would cost a pass more on a GPU.
    s, t = (
        jnp.where(x < LEAST, LEAST, x - largest(x, vocab_axes))
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
    """Divergence over the whole vocabulary and its gradient at the logits; of a KL the sums are known."""
    terms, q = _pointwise(log_s, log_t, alpha)
    if alpha == 1:
        value = sum_q = stats.reverse_kl
    elif alpha == 0:
        value, sum_q = stats.forward_kl, -jnp.ones_like(stats.forward_kl)
    else:
        value, sum_q = total(terms, vocab_axes), total(q, vocab_axes)
    return value, q - jnp.exp(log_s) * sum_q[:, None]


def _supported(log_s, log_t, keep, config: DivergenceConfig, vocab_axes):
    """Divergence over the tokens in `keep` and its gradient at the logits."""
    over_v = functools.partial(total, axes=vocab_axes)
    inside = lambda x: jnp.where(keep, x, 0.0)  # noqa: E731
    if config.tail == "renormalise":
        log_s -= logsumexp(jnp.where(keep, log_s, -jnp.inf), vocab_axes)
        log_t -= logsumexp(jnp.where(keep, log_t, -jnp.inf), vocab_axes)
        terms, q = map(inside, _pointwise(log_s, log_t, config.alpha))
        return over_v(terms), q - inside(jnp.exp(log_s)) * over_v(q)[:, None]
    # The tail is one more token, whose probability is the sum of all that are left out.
    log_tails = [logsumexp(jnp.where(keep, -jnp.inf, x), vocab_axes) for x in (log_s, log_t)]
    tail_s, tail_t = (jnp.maximum(tail, jnp.finfo(jnp.float32).min) for tail in log_tails)
    terms, q = map(inside, _pointwise(log_s, log_t, config.alpha))
    tail_term, tail_q = _pointwise(tail_s, tail_t, config.alpha)
    share = jnp.where(keep, 0.0, jnp.exp(log_s - tail_s))
    d_logits = q + share * tail_q - jnp.exp(log_s) * (over_v(q)[:, None] + tail_q)
    return over_v(terms) + tail_term[:, 0], d_logits


def _pointwise(log_s: Array, log_t: Array, alpha: float) -> tuple[Array, Array]:
    """Terms whose sum is the divergence, and q = S * d(divergence)/dS up to a multiple of S."""
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
    """Which tokens the divergence sums over; ties with the k-th are all in."""
    by_role = {"student": [log_s], "teacher": [log_t], "union": [log_s, log_t]}[config.support]
    masks = [x >= _kth_largest(x, config.top_k, vocab_axes) for x in by_role]
    return functools.reduce(jnp.logical_or, masks)


def _kth_largest(x: Float[Array, "n v"], k: int, vocab_axes: tuple[str, ...]) -> Float[Array, "n 1"]:
    local = jax.lax.top_k(x, min(k, x.shape[-1]))[0]
    everywhere = gather(local, vocab_axes, axis=1)
    return jax.lax.top_k(everywhere, min(k, everywhere.shape[-1]))[0][:, -1:]
