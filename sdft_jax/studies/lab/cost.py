"""Measures the cost of one update: matrix-product FLOPs of the compiled program, and seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sdft_jax.algorithm import init_state, make_learner, make_model, make_update
from sdft_jax.config import Config, from_dict, sharding_from
from sdft_jax.models import Architecture, architecture_from_dict
from sdft_jax.plan.hlo import matmul_flops
from sdft_jax.types import NO_STOP, Sequences, TokenBatch, TrainState

REPEATS = 5


class Prepared(NamedTuple):
    """A compiled update and its arguments."""

    compiled: Any
    state: TrainState
    batch: TokenBatch
    flops: float
    """FLOPs of its matrix products."""


def measure_step(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the FLOPs and the median seconds of one update on random prompts.

    Args:
        settings: `config` (a complete configuration as nested keys), `model` (a Hugging Face config.json),
            `prompt` and `teacher_prompt` (numbers of tokens). There is no end-of-sequence token, so every
            completion has sampling.max_new_tokens tokens.
    """
    config, model = from_dict(settings["config"], "lab cost"), architecture_from_dict(settings["model"])
    compiled, state, batch, flops = prepare_step(
        config, model, settings["prompt"], settings["teacher_prompt"]
    )
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - start)
    return {"flops": flops, "seconds": statistics.median(seconds[1:])}


def prepare_step(config: Config, shape: Architecture, prompt: int, teacher_prompt: int) -> Prepared:
    """Compile the update of `config.train.method` for random weights and prompts.

    Args:
        config: the whole configuration.
        shape: architecture of the model.
        prompt: number of tokens in each of the student's prompts.
        teacher_prompt: number of tokens in each of the teacher's prompts.
    """
    model = make_model(config, shape, sharding_from(config))
    learner = make_learner(config, model, 100, NO_STOP)
    params = jax.jit(lambda key: model.init(key, config.model.param_dtype))(jax.random.key(0))
    state = init_state(learner, params)
    batch = _batch(config, prompt, teacher_prompt, shape.vocab_size)
    update: Any = make_update(learner)
    lowered = update.lower(state, batch)
    compiled = lowered.compile()
    return Prepared(compiled, state, batch, matmul_flops(compiled.as_text()))


def _batch(config: Config, prompt: int, teacher_prompt: int, vocabulary: int) -> TokenBatch:
    rng, rows = np.random.default_rng(0), config.train.batch_size

    def tokens(width: int) -> Sequences:
        ids: Any = rng.integers(1, vocabulary, (rows, width)).astype(np.int32)
        mask: Any = np.ones((rows, width), bool)
        return Sequences(ids, mask)

    columns: tuple[Any, ...] = (
        tokens(prompt),
        tokens(teacher_prompt),
        tokens(config.sampling.max_new_tokens),
        np.arange(rows, dtype=np.int32),
        np.ones(rows, np.float32),
    )
    return TokenBatch(*columns)
