"""What a step costs: matrix-product FLOPs of the compiled program, and seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sdft_jax.algorithm.baselines import UPDATES
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state, make_model
from sdft_jax.config import Config, from_dict
from sdft_jax.config.devices import sharding_from
from sdft_jax.models import ModelConfig, config_from_dict
from sdft_jax.plan.hlo import matmul_flops
from sdft_jax.types import TokenBatch, TrainState

REPEATS = 5


class Prepared(NamedTuple):
    """A compiled update and what it is called with."""

    compiled: Any
    state: TrainState
    batch: TokenBatch
    flops: float
    """Of its matrix products."""


def measure_step(settings: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs and median seconds of one update on random prompts.

    Args:
        settings: `config` (whole, as nested keys), `model` (a Hugging Face config.json), `prompt` and
            `teacher_prompt` tokens. Completions take all of sampling.max_new_tokens: nothing ends them.
    """
    config, model = from_dict(settings["config"], "lab cost"), config_from_dict(settings["model"])
    compiled, state, batch, flops = prepare_step(
        config, model, settings["prompt"], settings["teacher_prompt"]
    )
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - begun)
    return {"flops": flops, "seconds": statistics.median(seconds[1:])}


def prepare_step(config: Config, shape: ModelConfig, prompt: int, teacher_prompt: int) -> Prepared:
    """The update of `config.train.method` on random weights and prompts of so many tokens."""
    model = make_model(config, shape, sharding_from(config))
    optimizer = make_optimizer(config.optimizer, 100)
    params = jax.jit(lambda key: model.init(key, config.model.param_dtype))(jax.random.key(0))
    state = init_state(model, params, optimizer, config)
    batch = _batch(config, prompt, teacher_prompt, shape.vocab_size)
    update = UPDATES[config.train.method](model, optimizer, config, eos_ids=(), pad_id=0)
    lowered = update.lower(state, batch)  # type: ignore[attr-defined]
    compiled = lowered.compile()
    return Prepared(compiled, state, batch, matmul_flops(compiled.as_text()))


def _batch(config: Config, prompt: int, teacher_prompt: int, vocabulary: int) -> TokenBatch:
    rng, rows = np.random.default_rng(0), config.train.batch_size

    def tokens(width: int) -> tuple[Any, Any]:
        return rng.integers(1, vocabulary, (rows, width)).astype(np.int32), np.ones((rows, width), bool)

    columns: tuple[Any, ...] = (
        *tokens(prompt),
        *tokens(teacher_prompt),
        *tokens(config.sampling.max_new_tokens),
        np.arange(rows, dtype=np.int32),
        np.ones(rows, np.float32),
    )
    return TokenBatch(*columns)
