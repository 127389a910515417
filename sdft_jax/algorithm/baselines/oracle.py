"""The oracle: nothing trains; the initial model is evaluated with the demonstration in context."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import optax

from sdft_jax.algorithm.state import Step, compile_step
from sdft_jax.config import Config
from sdft_jax.models import Model
from sdft_jax.types import Metrics, Rollout, TokenBatch, TrainState


def make_oracle_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Step:
    """The jitted update `(TrainState, TokenBatch) -> (TrainState, Metrics)` that only counts the step."""
    del eos_ids, pad_id

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        nothing = jnp.zeros((len(batch.prompt), 0))
        names = ("loss", "completion_length", "completion_tokens", "grad_norm", "update_norm")
        rollout = Rollout(nothing.astype(jnp.int32), nothing.astype(bool), nothing)
        scalars = {name: jnp.zeros(()) for name in names}
        return dataclasses.replace(state, step=state.step + 1), Metrics(scalars, rollout, nothing, nothing)

    return compile_step(update, model, optimizer, config)
