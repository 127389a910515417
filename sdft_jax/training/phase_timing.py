"""How fast each phase of an update is, although an update is one compiled program.

Sampling is timed by itself on the same batch; the rest of an update is what remains of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax

from sdft_jax.algorithm.baselines.reinvoke import has_demonstrations
from sdft_jax.algorithm.trainable import join
from sdft_jax.config import Config
from sdft_jax.config.methods import METHODS
from sdft_jax.models import Model
from sdft_jax.sampling.decode import compiled_sample, row_keys
from sdft_jax.training.inputs import Prepared
from sdft_jax.types import TokenBatch, TrainState


def time_sampling(
    model: Model, state: TrainState, batch: TokenBatch, config: Config, prepared: Prepared
) -> tuple[float, int]:
    """(seconds, completion tokens) of sampling this batch, compilation not counted; zeros if none."""
    method = METHODS[config.train.method]
    if method.samples is None or (method.general and has_demonstrations(batch)):
        return 0.0, 0
    keys = row_keys(jax.random.wrap_key_data(state.key), len(batch.prompt))
    params, prompt = state.params, (batch.prompt, batch.prompt_mask)
    if method.samples == "teacher":
        params, prompt = state.teacher, (batch.teacher_prompt, batch.teacher_mask)
    params = join(params, state.frozen)
    arguments = (*prompt, keys, config.sampling, prepared.eos, prepared.pad_id)
    jax.block_until_ready(compiled_sample(model, params, *arguments))
    begun = time.monotonic()
    rollout = jax.block_until_ready(compiled_sample(model, params, *arguments))
    return time.monotonic() - begun, int(rollout.mask.sum())


def speeds(
    scalars: Mapping[str, float], batch: TokenBatch, seconds: float, sampling: tuple[float, int] | None
) -> dict[str, float]:
    """Tokens per second: of completions over the whole step, and, where sampling was timed, of each phase.

    `rollout_tokens_per_second` counts sampled tokens, `learn_tokens_per_second` the real tokens that student
    and teacher score: prompts, and the completion once per role. A teacher scores where there is a
    `divergence`; without a prompt of its own, it reads the student's.
    """
    completion = scalars["completion_tokens"]
    found = {"seconds": seconds, "tokens_per_second": completion / seconds}
    if sampling is None:
        return found
    sampling_seconds, sampled = sampling
    scored = float(batch.prompt_mask.sum()) + completion
    if "divergence" in scalars:
        taught = batch.teacher_mask if batch.teacher_mask.shape[1] else batch.prompt_mask
        scored += float(taught.sum()) + completion
    if sampled:
        found["rollout_tokens_per_second"] = sampled / sampling_seconds
    if seconds > sampling_seconds:
        found["learn_tokens_per_second"] = scored / (seconds - sampling_seconds)
    return found
