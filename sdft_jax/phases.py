"""How fast each phase of an update is, although an update is one compiled program.

Sampling is timed by itself on the same batch; the rest of an update is what remains of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax

from sdft_jax.config import Config
from sdft_jax.models import Model
from sdft_jax.partition import join
from sdft_jax.prepare import Prepared
from sdft_jax.sampling import compiled_sample, row_keys
from sdft_jax.types import TokenBatch, TrainState


def time_sampling(
    model: Model, state: TrainState, batch: TokenBatch, config: Config, prepared: Prepared
) -> tuple[float, int]:
    """(seconds, completion tokens) of sampling this batch, compilation not counted; zeros if none."""
    if config.train.method == "sft":
        return 0.0, 0
    keys = row_keys(jax.random.wrap_key_data(state.key), len(batch.prompt))
    params = join(state.params, state.frozen)
    arguments = (batch.prompt, batch.prompt_mask, keys, config.sampling, prepared.eos, prepared.pad_id)
    jax.block_until_ready(compiled_sample(model, params, *arguments))
    begun = time.monotonic()
    rollout = jax.block_until_ready(compiled_sample(model, params, *arguments))
    return time.monotonic() - begun, int(rollout.mask.sum())


def speeds(
    scalars: Mapping[str, float], batch: TokenBatch, seconds: float, sampling: tuple[float, int] | None
) -> dict[str, float]:
    """Tokens per second: of completions over the whole step, and, where sampling was timed, of each phase.

    `rollout_tokens_per_second` counts sampled tokens, `learn_tokens_per_second` the real tokens that student
    and teacher score: prompts, and the completion once per role.
    """
    completion = scalars["completion_tokens"]
    found = {"seconds": seconds, "tokens_per_second": completion / seconds}
    if sampling is None:
        return found
    sampling_seconds, sampled = sampling
    roles = 2 if sampled else 1
    scored = float(batch.prompt_mask.sum() + (roles - 1) * batch.teacher_mask.sum()) + roles * completion
    if sampled:
        found["rollout_tokens_per_second"] = sampled / sampling_seconds
    if seconds > sampling_seconds:
        found["learn_tokens_per_second"] = scored / (seconds - sampling_seconds)
    return found
