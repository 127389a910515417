"""Offline distillation: the student learns on completions of the teacher's, not on its own (paper, Figure 6).

The initial model, shown the demonstration, completes every training row once; the student learns from these
completions, by cross-entropy (`offline`) or by divergence from that teacher (`offline_kl`). They are drawn
inside the update, from a key of the row's index only: every pass over the data meets the same ones, as if
they had been drawn beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import optax

from sdft_jax.algorithm import token_weights
from sdft_jax.algorithm.baselines.sft import imitate
from sdft_jax.algorithm.state import Step, compile_step
from sdft_jax.algorithm.trainable import join
from sdft_jax.algorithm.update import distill
from sdft_jax.config import Config
from sdft_jax.models import Model
from sdft_jax.sampling.decode import sample
from sdft_jax.types import Metrics, Rollout, TokenBatch, TrainState


def make_offline_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Step:
    """The jitted update `(TrainState, TokenBatch) -> (TrainState, Metrics)` on the teacher's tokens."""
    eos_ids = tuple(eos_ids)

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        rollout = teacher_rollout(model, config, state, batch, eos_ids, pad_id)
        mask = token_weights.loss_mask(rollout, eos_ids, config.objective)
        shown = dataclasses.replace(batch, demonstration=rollout.tokens, demonstration_mask=rollout.mask)
        return imitate(model, optimizer, config, state, shown, mask)

    return compile_step(update, model, optimizer, config)


def make_offline_kl_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Step:
    """The same with the distributions of the teacher in place of its tokens; importance is only logged."""
    eos_ids = tuple(eos_ids)
    # The ratio corrects a sampler that is off by rounding; here it would undo that the teacher samples.
    logged = dataclasses.replace(config.objective, importance="log")
    config = dataclasses.replace(config, objective=logged)

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        rollout = teacher_rollout(model, config, state, batch, eos_ids, pad_id)
        return distill(model, optimizer, config, state, batch, rollout, eos_ids)

    return compile_step(update, model, optimizer, config)


def teacher_rollout(
    model: Model, config: Config, state: TrainState, batch: TokenBatch, eos_ids: tuple[int, ...], pad_id: int
) -> Rollout:
    """Completions sampled from the teacher given its own prompts; the same ones for a row at every step."""
    key = jax.random.wrap_key_data(state.key)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.row)
    teacher = join(state.teacher, state.frozen)
    with jax.named_scope("rollout"):
        return sample(
            model, teacher, batch.teacher_prompt, batch.teacher_mask, keys, config.sampling, eos_ids, pad_id
        )
