"""The algorithm: one Self-Distillation Fine-Tuning update, in one `jax.jit` (paper, Algorithm 1).

    y  ~ student(. | x)                              rollout.py, sampling/decode.py
    T  = teacher(. | x, c, y<t)                      teacher.py: whose weights
    S  = student(. | x, y<t)
    L  = sum_t w_t D(S_t, T_t)                       token_weights.py: w;  divergence.py: D
    student <- optimizer(student, dL/dstudent)       state.py
    teacher <- (1 - rate) teacher + rate student     teacher.py

Student and teacher score the same y. Prompts are left-padded, so that for both roles the hidden state that
predicts completion token t is t columns after the last prompt token.

The other methods are the same composition with other parts: `config/methods.py` lists them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdft_jax.algorithm import token_weights
from sdft_jax.algorithm.accumulate import accumulate
from sdft_jax.algorithm.chunked_loss import FactoredLogits
from sdft_jax.algorithm.divergence import TokenStats, divergence
from sdft_jax.algorithm.imitation import confidence_loss, cross_entropy, imitate
from sdft_jax.algorithm.learner import Learner, check_batch
from sdft_jax.algorithm.rollout import student_rollout, target_rollout, teacher_rollout
from sdft_jax.algorithm.routers import RouterStats, router_summary, with_routers
from sdft_jax.algorithm.state import apply_gradients, state_shardings
from sdft_jax.algorithm.teacher import teacher_params
from sdft_jax.algorithm.trainable import join
from sdft_jax.config.methods import Phase
from sdft_jax.config.settings import DivergenceConfig, ObjectiveConfig
from sdft_jax.kernels.numerics import Program
from sdft_jax.models import Model
from sdft_jax.types import Metrics, Params, Rollout, TokenBatch, TrainState

Update = Callable[[TrainState, TokenBatch], tuple[TrainState, Metrics]]


class Rows(NamedTuple):
    """The inputs of the loss, with one entry per row of the batch."""

    batch: TokenBatch
    rollout: Rollout
    mask: Bool[Array, "B N"]
    weights: Float[Array, "B N"]


def make_update(learner: Learner) -> Update:
    """Return the jitted update `(TrainState, TokenBatch) -> (TrainState, Metrics)`; the state is donated.

    The state has the shardings of `init_state`, and the batch is split over its rows. A new batch shape
    triggers a compilation.

    Raises:
        SdftError: the mesh or the micro-batch does not divide the batch. The first call raises it if the
            method does not train.
    """
    config, model = learner.config, learner.model
    check_batch(config, model.sharding)
    state_sharding = state_shardings(learner)

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        phase = config.method.phase(has_target=batch.target.tokens.shape[1] > 0)
        with model.numerics():
            rollout = roll_out(learner, phase, state, batch)
            state, metrics = learn(learner, phase, state, batch, rollout)
        scalars = {**metrics.scalars, "prompt_padding": _padding(batch)}
        return state, dataclasses.replace(metrics, scalars=scalars)

    jitted = jax.jit(
        update,
        in_shardings=(state_sharding, model.sharding.named("batch")),
        out_shardings=(state_sharding, model.sharding.replicated),
        # To locate a NaN, jax.debug_nans repeats a step from its initial state.
        donate_argnums=() if config.debug.nans else 0,
    )
    return Program(jitted)


def roll_out(learner: Learner, phase: Phase, state: TrainState, batch: TokenBatch) -> Rollout:
    """Return the completions that a phase trains on."""
    if phase.completions == "target":
        return target_rollout(batch)
    sampled = student_rollout if phase.completions == "student" else teacher_rollout
    return sampled(learner, state, batch)


def learn(
    learner: Learner, phase: Phase, state: TrainState, batch: TokenBatch, rollout: Rollout
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the completions of `rollout`, with the loss of a phase."""
    if phase.loss == "divergence":
        return distill(learner, phase, state, batch, rollout)
    mask = rollout.mask
    if phase.completions != "target":
        mask = token_weights.loss_mask(rollout, learner.stop.eos_ids, learner.config.objective)
    token_loss = confidence_loss if phase.loss == "confidence" else cross_entropy
    return imitate(learner, state, batch, rollout, mask, token_loss)


def distill(
    learner: Learner, phase: Phase, state: TrainState, batch: TokenBatch, rollout: Rollout
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step that moves the student towards its teacher on the completions of `rollout`."""
    assert learner.teacher is not None
    options = loss_options(learner, phase)
    eos_ids = learner.stop.eos_ids
    teacher = join(teacher_params(state.teacher, state.params, learner.teacher), state.frozen)
    mask = token_weights.loss_mask(rollout, eos_ids, options.objective)
    weights = token_weights.aggregation_weights(mask, batch.weight, options.objective)
    if not phase.context:
        batch = dataclasses.replace(batch, teacher_prompt=batch.prompt)

    def loss(params: Params, rows: Rows) -> tuple[Float[Array, ""], LossStats]:
        return distillation_loss(learner.model, join(params, state.frozen), teacher, rows, options)

    def learn_from(width: int) -> tuple[Float[Array, ""], LossStats, Params]:
        """Return loss, statistics and gradients of the first `width` completion columns."""
        rows = Rows(batch, *(jax.tree.map(lambda x: x[:, :width], (rollout, mask, weights))))
        value, stats, gradients = accumulate(loss, state.params, rows, learner.micro_batches)
        missing = [(0, 0), (0, rollout.tokens.shape[1] - width)]
        tokens = jax.tree.map(lambda x: jnp.pad(x, missing), stats.tokens)
        return value, LossStats(tokens, stats.routers), gradients

    with jax.named_scope("learn"):
        widths = (*sorted(learner.config.train.completion_buckets), rollout.tokens.shape[1])
        longest = jnp.max(jnp.sum(rollout.mask, axis=1))
        branches = [functools.partial(learn_from, width) for width in widths]
        value, stats, gradients = jax.lax.switch(jnp.searchsorted(jnp.array(widths), longest), branches)
    with jax.named_scope("optimizer"):
        state, norms = apply_gradients(learner, state, gradients)
    scalars = {"loss": value, **_summary(stats.tokens, rollout, mask, eos_ids), **norms}
    scalars |= router_summary(stats.routers, mask) if stats.routers else {}
    return state, Metrics(scalars, rollout, stats.tokens.divergence, stats.tokens.log_ratio)


class LossOptions(NamedTuple):
    """The settings of a distillation loss."""

    divergence: DivergenceConfig
    objective: ObjectiveConfig


class LossStats(NamedTuple):
    """The statistics of a distillation loss."""

    tokens: TokenStats
    routers: RouterStats | None
    """None for a model without experts."""


def loss_options(learner: Learner, phase: Phase) -> LossOptions:
    """Return the settings of the configuration, except those that the phase fixes."""
    options, objective = learner.config.divergence, learner.config.objective
    if phase.alpha is not None:
        options = dataclasses.replace(options, alpha=phase.alpha)
    if phase.importance is not None:
        objective = dataclasses.replace(objective, importance=phase.importance)
    return LossOptions(options, objective)


def distillation_loss(
    model: Model, student: Params, teacher: Params, rows: Rows, options: LossOptions
) -> tuple[Float[Array, ""], LossStats]:
    """Return the weighted divergence of student and teacher on the same completions, and its statistics.

    Only the student's parameters have gradients.
    """
    batch, rollout = rows.batch, rows.rollout
    with jax.named_scope("teacher"):
        teacher_hidden, teacher_routers = model.completion_decisions(
            jax.lax.stop_gradient(teacher), batch.teacher_prompt, rollout.completion, rows.mask
        )
    with jax.named_scope("student"):
        student_hidden, routers = model.completion_decisions(
            student, batch.prompt, rollout.completion, rows.mask
        )

    def score(hidden: Float[Array, "B N D"], weights: Float[Array, "B N"]):
        return divergence(
            FactoredLogits(hidden, model.head(student)),
            FactoredLogits(teacher_hidden, model.head(teacher)),
            rollout.tokens,
            weights,
            options.divergence,
            model.sharding,
        )

    weights = rows.weights
    if options.objective.importance != "log":
        _, stats = jax.lax.stop_gradient(
            score(jax.lax.stop_gradient(student_hidden), jnp.zeros_like(weights))
        )
        ratio = token_weights.importance_ratio(stats.logprob, rollout, rows.mask)
        weights = weights * token_weights.importance_weights(ratio, rows.mask, options.objective)
    value, stats = score(student_hidden, weights)
    balance = options.objective.balance
    value, router_stats = with_routers(value, routers, teacher_routers, rows.weights, rows.mask, balance)
    return value, LossStats(stats, router_stats)


def _summary(
    stats: TokenStats, rollout: Rollout, mask: Bool[Array, "B N"], eos_ids: tuple[int, ...]
) -> dict[str, Float[Array, ""]]:
    """Return means over the tokens that carry loss, in nats per token; lengths are in tokens per
    completion.
    """
    ratio = token_weights.importance_ratio(stats.logprob, rollout, mask)
    lengths = jnp.sum(rollout.mask, axis=1).astype(jnp.float32)
    per_token = {
        "divergence": stats.divergence,
        "forward_kl": stats.forward_kl,
        "reverse_kl": stats.reverse_kl,
        "student_entropy": stats.student_entropy,
        "teacher_entropy": stats.teacher_entropy,
        "implicit_reward": stats.log_ratio,
        "importance_ratio": ratio,
    }
    return {
        **{name: token_weights.masked_mean(x, mask) for name, x in per_token.items()},
        "importance_max": jnp.max(ratio),
        "completion_length": jnp.mean(lengths),
        "completion_tokens": jnp.sum(lengths),
        "truncated": jnp.mean(token_weights.truncated(rollout, eos_ids).astype(jnp.float32)),
    }


def _padding(batch: TokenBatch) -> Float[Array, ""]:
    """Return the share of padding in the prompts of both roles."""
    masks = (batch.prompt.mask, batch.teacher_prompt.mask)
    columns = max(sum(mask.size for mask in masks), 1)
    real = jnp.asarray(sum(jnp.sum(mask, dtype=jnp.float32) for mask in masks))
    return 1 - real / columns
