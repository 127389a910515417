"""The algorithm: one Self-Distillation Fine-Tuning update, in one `jax.jit` (paper, Algorithm 1).

    y  ~ student(. | x)                              sampling.py
    T  = teacher(. | x, c, y<t)                      teacher.py: whose weights
    S  = student(. | x, y<t)
    L  = sum_t w_t D(S_t, T_t)                       token_weights.py: w;  divergence.py: D
    student <- optimizer(student, dL/dstudent)       state.py
    teacher <- (1 - rate) teacher + rate student     teacher.py

Student and teacher score the same y. Prompts are left-padded, so that for both roles the hidden state that
predicts completion token t stands t columns after the prompt's last one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.algorithm import token_weights
from sdft_jax.algorithm.accumulate import accumulate
from sdft_jax.algorithm.divergence import TokenStats, divergence
from sdft_jax.algorithm.state import (
    Step,
    apply_gradients,
    compile_step,
    micro_batches,
    sharding_of,
    teacher_config,
)
from sdft_jax.algorithm.teacher import teacher_params
from sdft_jax.algorithm.trainable import join
from sdft_jax.config import Config
from sdft_jax.models import Model
from sdft_jax.sampling.decode import row_keys, sample
from sdft_jax.types import Metrics, Params, Rollout, TokenBatch, TrainState


class Rows(NamedTuple):
    """What one row brings into the loss."""

    batch: TokenBatch
    rollout: Rollout
    mask: Bool[Array, "B N"]
    weights: Float[Array, "B N"]


def make_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Step:
    """The jitted update `(TrainState, TokenBatch) -> (TrainState, Metrics)`; the state is donated.

    Args:
        model: the decoder; its sharding says where everything lies.
        optimizer: moves the trainable parameters, such as `optimizer.make_optimizer` gives.
        config: sampling, teacher, divergence, objective and micro-batch.
        eos_ids: tokens that end a completion.
        pad_id: what stands after the end.

    Raises:
        SdftError: a batch that the mesh or the micro-batch does not divide, before anything compiles.
    """
    eos_ids = tuple(eos_ids)

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        rollout = student_rollout(model, config, state, batch, eos_ids, pad_id)
        return distill(model, optimizer, config, state, batch, rollout, eos_ids)

    return compile_step(update, model, optimizer, config)


def student_rollout(
    model: Model, config: Config, state: TrainState, batch: TokenBatch, eos_ids: tuple[int, ...], pad_id: int
) -> Rollout:
    """Completions sampled from the student given its own prompts; other ones at every step."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    keys = row_keys(key, len(batch.prompt))
    student = join(state.params, state.frozen)
    with jax.named_scope("rollout"):
        return sample(model, student, batch.prompt, batch.prompt_mask, keys, config.sampling, eos_ids, pad_id)


def distill(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    state: TrainState,
    batch: TokenBatch,
    rollout: Rollout,
    eos_ids: tuple[int, ...],
) -> tuple[TrainState, Metrics]:
    """One optimizer step that brings the student closer to its teacher on the completions of `rollout`."""
    teacher = join(teacher_params(state.teacher, state.params, teacher_config(config)), state.frozen)
    mask = token_weights.loss_mask(rollout, eos_ids, config.objective)
    weights = token_weights.aggregation_weights(mask, batch.weight, config.objective)

    def loss(params: Params, rows: Rows) -> tuple[Float[Array, ""], TokenStats]:
        return distillation_loss(model, join(params, state.frozen), teacher, rows, config)

    def learn(width: int) -> tuple[Float[Array, ""], TokenStats, Params]:
        """From the first `width` columns of the completions."""
        rows = Rows(batch, *(jax.tree.map(lambda x: x[:, :width], (rollout, mask, weights))))
        value, stats, gradients = accumulate(loss, state.params, rows, micro_batches(config))
        rest = [(0, 0), (0, rollout.tokens.shape[1] - width)]
        return value, jax.tree.map(lambda x: jnp.pad(x, rest), stats), gradients

    with jax.named_scope("learn"):
        widths = (*sorted(config.train.completion_buckets), rollout.tokens.shape[1])
        longest = jnp.max(jnp.sum(rollout.mask, axis=1))
        branches = [functools.partial(learn, width) for width in widths]
        value, stats, gradients = jax.lax.switch(jnp.searchsorted(jnp.array(widths), longest), branches)
    with jax.named_scope("optimizer"):
        state, norms = apply_gradients(state, gradients, optimizer, config)
    scalars = {"loss": value, **_summary(stats, rollout, mask, eos_ids), **norms}
    return state, Metrics(scalars, rollout, stats.divergence, stats.log_ratio)


def distillation_loss(
    model: Model, student: Params, teacher: Params, rows: Rows, config: Config
) -> tuple[Float[Array, ""], TokenStats]:
    """Weighted divergence of student and teacher on the same completions; gradients to the student only."""
    batch, rollout = rows.batch, rows.rollout
    with jax.named_scope("teacher"):
        taught = completion_hidden(
            model,
            jax.lax.stop_gradient(teacher),
            batch.teacher_prompt,
            batch.teacher_mask,
            rollout.tokens,
            rollout.mask,
        )
    with jax.named_scope("student"):
        hidden = completion_hidden(
            model, student, batch.prompt, batch.prompt_mask, rollout.tokens, rollout.mask
        )

    def score(hidden: Float[Array, "B N D"], weights: Float[Array, "B N"]):
        heads = (model.head(student), model.head(teacher))
        return divergence(
            hidden, heads[0], taught, heads[1], rollout.tokens, weights, config.divergence, sharding_of(model)
        )

    weights = rows.weights
    if config.objective.importance != "log":
        _, stats = jax.lax.stop_gradient(score(jax.lax.stop_gradient(hidden), jnp.zeros_like(weights)))
        ratio = token_weights.importance_ratio(stats.logprob, rollout, rows.mask)
        weights = weights * token_weights.importance_weights(ratio, rows.mask, config.objective)
    return score(hidden, weights)


def completion_hidden(
    model: Model,
    params: Params,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    completion: Int[Array, "B N"],
    completion_mask: Bool[Array, "B N"],
) -> Float[Array, "B N D"]:
    """Hidden states that predict each completion token: those of the token before it."""
    tokens = jnp.concatenate([prompt, completion], axis=1)
    mask = jnp.concatenate([prompt_mask, completion_mask], axis=1)
    hidden = model.hidden_states(params, tokens, mask)
    return hidden[:, prompt.shape[1] - 1 : -1]


def _summary(
    stats: TokenStats, rollout: Rollout, mask: Bool[Array, "B N"], eos_ids: tuple[int, ...]
) -> dict[str, Float[Array, ""]]:
    """Means over the tokens that carry loss, in nats per token; lengths in tokens per completion."""
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
