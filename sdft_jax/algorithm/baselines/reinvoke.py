"""SFT + re-invoke: supervised fine-tuning, then the base model is distilled back (paper, Table 5).

After Lu et al. 2025, "On-Policy Distillation" (thinkingmachines.ai/blog/on-policy-distillation): the student
completes prompts of general use, and the reverse KL brings it back to the initial model on them. No
demonstration is shown to anybody: the teacher's prompt is the student's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import optax

from sdft_jax.algorithm.baselines.sft import imitate
from sdft_jax.algorithm.state import Step, compile_step
from sdft_jax.algorithm.update import distill, student_rollout
from sdft_jax.config import Config
from sdft_jax.models import Model
from sdft_jax.types import Metrics, TokenBatch, TrainState


def make_reinvoke_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Step:
    """The jitted update `(TrainState, TokenBatch) -> (TrainState, Metrics)`, two programs in one.

    A batch with demonstrations is imitated, one without (of width 0) is distilled on, by the reverse KL
    whatever `divergence.alpha`; each compiles when its first batch comes.
    """
    eos_ids = tuple(eos_ids)
    reverse = dataclasses.replace(config, divergence=dataclasses.replace(config.divergence, alpha=1.0))

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        if has_demonstrations(batch):
            return imitate(model, optimizer, config, state, batch, batch.demonstration_mask)
        rollout = student_rollout(model, config, state, batch, eos_ids, pad_id)
        same = dataclasses.replace(batch, teacher_prompt=batch.prompt, teacher_mask=batch.prompt_mask)
        return distill(model, optimizer, reverse, state, same, rollout, eos_ids)

    return compile_step(update, model, optimizer, config)


def has_demonstrations(batch: TokenBatch) -> bool:
    """Whether this is a batch of the first phase; known from its shape, before any value is."""
    return batch.demonstration.shape[1] > 0


def imitation_steps(config: Config, steps: int) -> int:
    """How many of a run's steps imitate; the rest, a share of `train.reinvoke`, distill."""
    return steps - round(config.train.reinvoke * steps)
