"""Imitation: the cross-entropy of given or sampled completions after the student's prompt.

This is supervised fine-tuning (SFT) if the completions are demonstrations. Methods joint and cpt use it on
other data (the demonstrations of all stages, raw texts after a prompt of one token), and method offline on
the teacher's samples. Method dft weights each token's loss by the token's own probability.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.algorithm import token_weights
from sdft_jax.algorithm.accumulate import accumulate
from sdft_jax.algorithm.chunked_loss import (
    FactoredLogits,
    TokenLoss,
    chunked_loss,
    is_token,
    logsumexp,
    vocab_sum,
)
from sdft_jax.algorithm.learner import Learner
from sdft_jax.algorithm.routers import router_summary, with_routers
from sdft_jax.algorithm.state import apply_gradients
from sdft_jax.algorithm.trainable import join
from sdft_jax.types import Metrics, Params, Rollout, Sequences, TokenBatch, TrainState

Rows = tuple[Sequences, Sequences, Float[Array, "B N"], Bool[Array, "B N"]]
"""Prompts, completions, and the weights and the loss mask of the completions' tokens."""


def cross_entropy(logits: Float[Array, "n v"], target: Int[Array, " n"], vocab_axes: tuple[str, ...]):
    """Return the statistics (log S(target), value), the value -log S(target), and its gradient S -
    onehot(target).
    """
    log_s = logits - logsumexp(logits, vocab_axes)
    chosen = is_token(logits, target, vocab_axes)
    logprob = vocab_sum(jnp.where(chosen, log_s, 0.0), vocab_axes)
    return (logprob, -logprob), -logprob, jnp.exp(log_s) - chosen


def confidence_loss(logits: Float[Array, "n v"], target: Int[Array, " n"], vocab_axes: tuple[str, ...]):
    """Return the loss of Dynamic Fine-Tuning, as `cross_entropy` does.

    Its value is -sg(p) log p with p = S(target); sg stops the gradient, so that the gradient with respect to
    the logits is p (S - onehot(target)) (Wu et al. 2025, "On the Generalization of SFT", arXiv 2508.05629).
    """
    (logprob, _), value, d_logits = cross_entropy(logits, target, vocab_axes)
    p = jnp.exp(logprob)
    return (logprob, p * value), p * value, p[:, None] * d_logits


def imitate(
    learner: Learner,
    state: TrainState,
    batch: TokenBatch,
    rollout: Rollout,
    mask: Bool[Array, "B N"],
    token_loss: TokenLoss = cross_entropy,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the completions of `rollout`.

    Args:
        learner: the static part of the update.
        state: the state before the step.
        batch: prompts and sample weights.
        rollout: the completions; their log-probabilities are not read.
        mask: True on the tokens that carry loss.
        token_loss: its statistics are the log-probability and the loss of each token, as in `cross_entropy`.
    """
    model, config = learner.model, learner.config
    completion = rollout.completion
    weights = token_weights.aggregation_weights(mask, batch.weight, config.objective)

    def loss(params: Params, rows: Rows) -> tuple[Float[Array, ""], Any]:
        prompt, completion, weights, mask = rows
        student = join(params, state.frozen)
        real = jnp.concatenate([prompt.mask, completion.mask], axis=1)
        lengths = jnp.sum(real, axis=1, dtype=jnp.int32)
        hidden, routers = model.completion_decisions(student, prompt, completion, mask, lengths)
        logits = FactoredLogits(hidden, model.head(student))
        value, stats = chunked_loss(
            token_loss, (logits,), completion.tokens, weights, config.divergence.chunk, model.sharding
        )
        value, router_stats = with_routers(value, routers, None, weights, mask, config.objective.balance)
        return value, (stats, router_stats)

    with jax.named_scope("learn"):
        value, ((logprob, losses), routers), gradients = accumulate(
            loss, state.params, (batch.prompt, completion, weights, mask), learner.micro_batches
        )
    with jax.named_scope("optimizer"):
        state, norms = apply_gradients(learner, state, gradients)
    lengths = jnp.sum(completion.mask, axis=1).astype(jnp.float32)
    scalars = {
        "loss": value,
        "cross_entropy": token_weights.masked_mean(-logprob, mask),
        "completion_length": jnp.mean(lengths),
        "completion_tokens": jnp.sum(lengths),
        **(router_summary(routers, mask) if routers else {}),
        **norms,
    }
    scored = Rollout(completion.tokens, completion.mask, jnp.where(completion.mask, logprob, 0.0))
    return state, Metrics(scalars, scored, losses, jnp.zeros_like(losses))
