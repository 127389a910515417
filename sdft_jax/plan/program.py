"""The training update, lowered for devices that need not be present, and its floating-point operations."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdft_jax.algorithm.learner import Learner, make_learner, make_model
from sdft_jax.algorithm.state import abstract_state
from sdft_jax.algorithm.update import make_update
from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.models import Architecture, Model, architecture_from_dict, model_directory, read_architecture
from sdft_jax.plan.footprint import widest
from sdft_jax.plan.hlo import matmul_flops_by_scope
from sdft_jax.sharding import Sharding, single_device
from sdft_jax.types import Sequences, StopTokens, TokenBatch

_SHAPES = Path(__file__).with_name("shapes.json")
"""Model name -> its config.json."""
_STEPS = 1000
"""The number of steps of the learning rate's schedule: a constant in the program."""
STOP = StopTokens(eos_ids=(1,), pad_id=0)
"""One end-of-sequence token and the padding token: constants in the program."""


def model_shape(config: Config) -> Architecture:
    """Return the architecture of `model.path`: a directory with a config.json, or the name of a known model.

    No weights are read.

    Raises:
        SdftError: `model.path` is neither.
    """
    path = config.model.path
    if Path(path).is_dir() or path.startswith("mini"):
        return read_architecture(model_directory(path))
    known = json.loads(_SHAPES.read_text(encoding="utf-8"))
    name = re.sub("-(Instruct|instruct|Reasoning|Think|Base|BF16|it|pt)(?=-|$)", "", path.rpartition("/")[2])
    if name in known:
        return architecture_from_dict(known[name])
    raise SdftError(
        f"model.path={path}: planning needs the model's config.json: give a directory that contains it (no "
        f"weights are read), or one of {', '.join(known)}."
    )


def planned_learner(config: Config, model: Model) -> Learner:
    """Return a learner whose update is lowered but not run."""
    return make_learner(config, model, _STEPS, STOP)


def lower_update(learner: Learner) -> jax.stages.Lowered:
    """Return the whole update, lowered for a batch of the maximum lengths."""
    update: Any = make_update(learner)
    return update.lower(abstract_state(learner), abstract_batch(learner.config, learner.model.sharding))


def abstract_batch(config: Config, sharding: Sharding) -> TokenBatch:
    """Return the shapes of a batch with the maximum lengths that a configuration allows."""
    widths, by_rows = widest(config), sharding.named("batch")

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((config.train.batch_size, *shape), dtype, sharding=by_rows)

    def sequences(width: int) -> Sequences:
        return Sequences(array(jnp.int32, width), array(jnp.bool_, width))

    return TokenBatch(
        prompt=sequences(widths.prompt),
        teacher_prompt=sequences(widths.teacher),
        target=sequences(widths.completion),
        row=array(jnp.int32),
        weight=array(jnp.float32),
    )


class Work(NamedTuple):
    """Floating-point operations of the matrix products of one update, summed over all devices."""

    rollout: float
    learn: float
    attention: float
    """The part of both that attention over whole sequences takes. It includes masked keys in the query's own
    segment (`kernels.attention.SEGMENTS`)."""


@functools.cache
def matmul_work(config: Config, architecture: Architecture) -> Work:
    """Return the operations, counted in the program for one device.

    Attention is lowered in plain JAX, since the operations of fused kernels cannot be counted.
    """
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))
    learner = planned_learner(config, make_model(config, architecture, single_device()))
    flops = matmul_flops_by_scope(lower_update(learner).as_text(dialect="hlo", debug_info=True))
    rollout = sum(count for scope, count in flops.items() if "/rollout" in scope)
    attention = sum(count for scope, count in flops.items() if "self_attention" in scope)
    return Work(rollout, sum(flops.values()) - rollout, attention)
