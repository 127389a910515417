"""The completions that an update trains on: sampled by the student or the teacher, or given as targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sdft_jax.algorithm.learner import Learner
from sdft_jax.algorithm.state import student_params
from sdft_jax.algorithm.trainable import join
from sdft_jax.sampling import sample
from sdft_jax.sampling.keys import from_data, row_keys
from sdft_jax.types import Rollout, TokenBatch, TrainState


def student_rollout(learner: Learner, state: TrainState, batch: TokenBatch) -> Rollout:
    """Sample completions from the student, given its own prompts; the samples differ from step to step."""
    key = jax.random.fold_in(from_data(state.key), state.step)
    keys = row_keys(key, len(batch.row))
    student = student_params(state)
    with jax.named_scope("rollout"):
        return sample(learner.model, student, batch.prompt, keys, learner.config.sampling, learner.stop)


def teacher_rollout(learner: Learner, state: TrainState, batch: TokenBatch) -> Rollout:
    """Sample completions from the teacher, given its prompts (paper, Figure 6).

    A row's key depends on its index only, so that every pass over the data has the same completions, as if
    they had been sampled beforehand.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(from_data(state.key), batch.row)
    teacher = join(state.teacher, state.frozen)
    with jax.named_scope("rollout"):
        sampling = learner.config.sampling
        return sample(learner.model, teacher, batch.teacher_prompt, keys, sampling, learner.stop)


def target_rollout(batch: TokenBatch) -> Rollout:
    """Return the batch's targets as completions, with 0 for their unknown log-probabilities."""
    target = batch.target
    return Rollout(target.tokens, target.mask, jnp.zeros(target.tokens.shape, jnp.float32))
