"""Supervised fine-tuning: cross-entropy of the demonstrations, given the student's prompt alone.

Methods joint and cpt are this update on other data: the demonstrations of all stages, and raw texts after a
prompt of one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.algorithm import token_weights
from sdft_jax.algorithm.accumulate import accumulate
from sdft_jax.algorithm.chunked_loss import TokenLoss, chunked_loss, is_token, logsumexp, total
from sdft_jax.algorithm.state import Step, apply_gradients, compile_step, micro_batches, sharding_of
from sdft_jax.algorithm.trainable import join
from sdft_jax.algorithm.update import completion_hidden
from sdft_jax.config import Config
from sdft_jax.models import Model
from sdft_jax.types import Metrics, Params, Rollout, TokenBatch, TrainState

Rows = tuple[TokenBatch, Float[Array, "B N"]]
"""A micro-batch and the weights of its completions' tokens."""


def make_sft_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Step:
    """The jitted update `(TrainState, TokenBatch) -> (TrainState, Metrics)`; as `make_update`, off-policy."""
    del eos_ids, pad_id

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        return imitate(model, optimizer, config, state, batch, batch.demonstration_mask)

    return compile_step(update, model, optimizer, config)


def cross_entropy(logits: Float[Array, "n v"], target: Int[Array, " n"], vocab_axes: tuple[str, ...]):
    """Value -log S(target) and its gradient S - onehot(target); statistics: (log S(target), value)."""
    log_s = logits - logsumexp(logits, vocab_axes)
    chosen = is_token(logits, target, vocab_axes)
    logprob = total(jnp.where(chosen, log_s, 0.0), vocab_axes)
    return (logprob, -logprob), -logprob, jnp.exp(log_s) - chosen


def imitate(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    state: TrainState,
    batch: TokenBatch,
    mask: Bool[Array, "B N"],
    token_loss: TokenLoss = cross_entropy,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on the completions `batch.demonstration`, of which the tokens in `mask` count.

    `token_loss` has the statistics (log-probability, loss) of every token, as `cross_entropy`'s are.
    """
    shown = batch.demonstration_mask
    weights = token_weights.aggregation_weights(mask, batch.weight, config.objective)

    def loss(params: Params, rows: Rows) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        batch, weights = rows
        student = join(params, state.frozen)
        hidden = completion_hidden(
            model, student, batch.prompt, batch.prompt_mask, batch.demonstration, batch.demonstration_mask
        )
        return chunked_loss(
            token_loss,
            (hidden,),
            (model.head(student),),
            batch.demonstration,
            weights,
            config.divergence.chunk,
            sharding_of(model),
        )

    with jax.named_scope("learn"):
        value, (logprob, losses), gradients = accumulate(
            loss, state.params, (batch, weights), micro_batches(config)
        )
    with jax.named_scope("optimizer"):
        state, norms = apply_gradients(state, gradients, optimizer, config)
    lengths = jnp.sum(shown, axis=1).astype(jnp.float32)
    scalars = {
        "loss": value,
        "cross_entropy": token_weights.masked_mean(-logprob, mask),
        "completion_length": jnp.mean(lengths),
        "completion_tokens": jnp.sum(lengths),
        **norms,
    }
    rollout = Rollout(batch.demonstration, shown, jnp.where(shown, logprob, 0.0))
    return state, Metrics(scalars, rollout, losses, jnp.zeros_like(losses))
