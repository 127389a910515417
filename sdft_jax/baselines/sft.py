"""Supervised fine-tuning: cross-entropy of the demonstrations, given the student's prompt alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sdft_jax import objective
from sdft_jax.chunked import chunked_loss, is_token, logsumexp, total
from sdft_jax.config import Config
from sdft_jax.gradients import accumulate
from sdft_jax.models import Model
from sdft_jax.partition import join
from sdft_jax.state import Step, apply_gradients, compile_step, micro_batches, sharding_of
from sdft_jax.types import Metrics, Params, Rollout, TokenBatch, TrainState
from sdft_jax.update import completion_hidden


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
    parts = micro_batches(config)

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        shown = batch.demonstration_mask
        weights = objective.aggregation_weights(shown, batch.weight, config.objective)

        def loss(params: Params, rows: tuple[TokenBatch, Array]) -> tuple[Float[Array, ""], Array]:
            batch, weights = rows
            student = join(params, state.frozen)
            hidden = completion_hidden(
                model, student, batch.prompt, batch.prompt_mask, batch.demonstration, batch.demonstration_mask
            )
            return chunked_loss(
                _cross_entropy, (hidden,), (model.head(student),), batch.demonstration, weights,
                config.divergence.chunk, sharding_of(model),
            )  # fmt: skip

        value, losses, gradients = accumulate(loss, state.params, (batch, weights), parts)
        state, norms = apply_gradients(state, gradients, optimizer, config)
        lengths = jnp.sum(shown, axis=1).astype(jnp.float32)
        scalars = {
            "loss": value,
            "cross_entropy": objective.masked_mean(losses, shown),
            "completion_length": jnp.mean(lengths),
            "completion_tokens": jnp.sum(lengths),
            **norms,
        }
        rollout = Rollout(batch.demonstration, shown, jnp.where(shown, -losses, 0.0))
        return state, Metrics(scalars, rollout, losses, jnp.zeros_like(losses))

    return compile_step(update, model, optimizer, config)


def _cross_entropy(logits: Float[Array, "n v"], target: Array, vocab_axes: tuple[str, ...]):
    """Value -log S(target) and its gradient S - onehot(target)."""
    log_s = logits - logsumexp(logits, vocab_axes)
    chosen = is_token(logits, target, vocab_axes)
    value = -total(jnp.where(chosen, log_s, 0.0), vocab_axes)
    return value, value, jnp.exp(log_s) - chosen
