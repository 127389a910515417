"""The routers of a mixture of experts during an update: their statistics, and a loss that balances the load.

Student and teacher route by their own weights. Only tokens that carry loss count.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdft_jax.models.experts import Decisions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStats:
    """Sums over the tokens of each row, as means over the layers; without gradient."""

    entropy: Float[Array, " B"]
    """The entropy of the student's probabilities, in nats."""
    agreement: Float[Array, " B"] | None
    """The share of the student's experts that are also the teacher's; None without a teacher."""
    load: Float[Array, "B L E"]
    """The number of tokens that each expert of the student computes, in each layer."""


def with_routers(
    loss: Float[Array, ""],
    student: Decisions | None,
    teacher: Decisions | None,
    weights: Float[Array, "B N"],
    mask: Bool[Array, "B N"],
    balance: float,
) -> tuple[Float[Array, ""], RouterStats | None]:
    """Return a loss with `balance` times the load-balancing loss, and the statistics of the routers; the loss
    itself and None for a model without experts.
    """
    if student is None:
        return loss, None
    if balance:
        loss += balance * balance_loss(student, weights, mask)
    return loss, router_stats(student, teacher, mask)


def router_stats(student: Decisions, teacher: Decisions | None, mask: Bool[Array, "B N"]) -> RouterStats:
    """Return the statistics of one scoring pass."""
    student, agreement = jax.lax.stop_gradient(student), None
    if teacher is not None:
        same = student.experts[..., :, None] == teacher.experts[..., None, :]
        shared = jnp.mean(jnp.any(same, axis=-1).astype(jnp.float32), axis=(0, -1))
        agreement = jnp.sum(jnp.where(mask, shared, 0.0), axis=1)
    entropy = jnp.sum(jnp.where(mask, student.entropy, 0.0), axis=1)
    return RouterStats(entropy, agreement, student.load.swapaxes(0, 1))


def balance_loss(
    decisions: Decisions, weights: Float[Array, "B N"], mask: Bool[Array, "B N"]
) -> Float[Array, ""]:
    """Return the load-balancing loss, a mean over layers and a sum over rows, each times the weights of its
    tokens: 1 if all experts are used alike and the weights add up to 1.

    In each row, it is the sum over experts of their share of the choices times their mean probability, times
    the number of experts (Switch Transformer, arXiv 2101.03961, equation 4; by sequence as in DeepSeek-V3,
    arXiv 2412.19437, equation 17), so that it does not depend on micro-batches and meshes.

    Args:
        decisions: those of the student; the probabilities have gradients.
        weights: the weight of each token in the loss; a row has the sum of its tokens' weights.
        mask: the tokens that count in `decisions`.
    """
    tokens = jnp.maximum(jnp.sum(mask, axis=1), 1).astype(jnp.float32)[None, :, None]
    share = jax.lax.stop_gradient(decisions.load) / (tokens * decisions.experts.shape[-1])
    probability = decisions.probabilities / tokens
    of_row = decisions.load.shape[-1] * jnp.mean(jnp.sum(share * probability, axis=-1), axis=0)
    return jnp.sum(of_row * jnp.sum(weights, axis=1))


def router_summary(stats: RouterStats, mask: Bool[Array, "B N"]) -> dict[str, Float[Array, ""]]:
    """Return the metrics: means over the tokens that carry loss, and the load of the busiest expert of any
    layer relative to the mean load.
    """
    tokens = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
    load = jnp.sum(stats.load, axis=0)
    mean = jnp.maximum(jnp.mean(load, axis=-1, keepdims=True), 1e-9)
    agreement = stats.agreement
    return {
        "router_entropy": jnp.sum(stats.entropy) / tokens,
        "router_load_max": jnp.max(load / mean),
        **({} if agreement is None else {"router_agreement": jnp.sum(agreement) / tokens}),
    }
