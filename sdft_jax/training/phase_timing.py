"""The throughput of each phase of an update, although an update is one compiled program.

Sampling is timed separately on the same batch; learning takes the rest of the update's time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax

from sdft_jax.algorithm import Learner, join
from sdft_jax.sampling import compiled_sample
from sdft_jax.sampling.keys import from_data, row_keys
from sdft_jax.sharding import to_host
from sdft_jax.types import Sequences, TokenBatch, TrainState


class SamplingTime(NamedTuple):
    """One timing of sampling; zeros if the batch needs no samples."""

    seconds: float
    tokens: int
    """The number of completion tokens."""


def time_sampling(learner: Learner, state: TrainState, batch: TokenBatch) -> SamplingTime:
    """Return the time to sample the completions of a batch, without compilation."""
    phase = learner.config.method.phase(has_target=batch.target.tokens.shape[1] > 0)
    if phase.completions == "target":
        return SamplingTime(0.0, 0)
    params, prompt = state.params, batch.prompt
    if phase.completions == "teacher":
        params, prompt = state.teacher, batch.teacher_prompt
    keys = row_keys(from_data(state.key), len(batch.row))
    arguments = (join(params, state.frozen), prompt, keys, learner.config.sampling, learner.stop)
    jax.block_until_ready(compiled_sample(learner.model, *arguments))
    start = time.monotonic()
    rollout = jax.block_until_ready(compiled_sample(learner.model, *arguments))
    return SamplingTime(time.monotonic() - start, int(rollout.mask.sum()))


def throughputs(
    scalars: Mapping[str, float], batch: TokenBatch, seconds: float, sampling: SamplingTime | None
) -> dict[str, float]:
    """Return tokens per second: of completions over the whole step and, if sampling was timed, of each phase.

    `rollout_tokens_per_second` counts sampled tokens, `learn_tokens_per_second` the real tokens that student
    and teacher score: prompts, and the completion once per role. There is a teacher if there is a
    `divergence`; without a prompt of its own it scores the student's prompt.
    """
    completion = scalars["completion_tokens"]
    rates = {"seconds": seconds, "tokens_per_second": completion / seconds}
    if sampling is None:
        return rates
    scored = _count(batch.prompt) + completion
    if "divergence" in scalars:
        has_own = batch.teacher_prompt.mask.shape[1] > 0
        scored += _count(batch.teacher_prompt if has_own else batch.prompt) + completion
    if sampling.tokens:
        rates["rollout_tokens_per_second"] = sampling.tokens / sampling.seconds
    if seconds > sampling.seconds:
        rates["learn_tokens_per_second"] = scored / (seconds - sampling.seconds)
    return rates


def _count(sequences: Sequences) -> float:
    """Return the number of tokens that are not padding, by an explicit transfer."""
    return float(to_host(sequences.mask.sum()))
