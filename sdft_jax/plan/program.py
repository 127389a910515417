"""The update that training runs, lowered for devices that are not there."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdft_jax.algorithm.baselines import UPDATES
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import abstract_state, make_model
from sdft_jax.config import Config
from sdft_jax.config.methods import METHODS
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, ModelConfig, config_from_dict, read_config
from sdft_jax.plan.footprint import widest
from sdft_jax.plan.hlo import matmul_flops_by_scope
from sdft_jax.sharding import Sharding, single_device
from sdft_jax.types import TokenBatch

_SHAPES = Path(__file__).with_name("shapes.json")
_STEPS = 1000
"""Of the schedule; the program does not depend on their number."""


def model_shape(config: Config) -> ModelConfig:
    """The architecture of `model.path`: a directory with a config.json, or a name that is known offline.

    Raises:
        SdftError: neither; no weights are ever read.
    """
    path = config.model.path
    if Path(path).is_dir() or path.startswith("mini"):
        from sdft_jax.models.hf.hub import model_directory

        return read_config(model_directory(path))
    known = json.loads(_SHAPES.read_text(encoding="utf-8"))
    name = path.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-Think")
    if name in known:
        return config_from_dict(known[name])
    raise SdftError(
        f"model.path={path}: planning needs the model's config.json; give a directory that holds it (no "
        f"weights are read), or one of {', '.join(known)}."
    )


def lower_update(config: Config, model: Model, sharding: Sharding) -> Any:
    """`jax.stages.Lowered` of the whole update, for batches of the longest lengths that the limits allow."""
    optimizer = make_optimizer(config.optimizer, _STEPS)
    state = abstract_state(model, optimizer, config)
    update: Any = UPDATES[config.train.method](model, optimizer, config, eos_ids=(1,), pad_id=0)
    return update.lower(state, abstract_batch(config, sharding))


def abstract_batch(config: Config, sharding: Sharding) -> TokenBatch:
    """Shapes of a batch in its longest bucket."""
    widths, split = widest(config), sharding.named("batch")

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.train.batch_size, *shape), dtype, sharding=split)

    def tokens(width: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return array(jnp.int32, width), array(jnp.bool_, width)

    columns: tuple[Any, ...] = (
        *tokens(widths.prompt),
        *tokens(widths.teacher),
        *tokens(widths.completion),
        array(jnp.int32),
        array(jnp.float32),
    )
    return TokenBatch(*columns)


def sampled_prompt(config: Config, sharding: Sharding) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Tokens and mask of the prompt that the method's rollout reads: the student's or the teacher's."""
    batch: Any = abstract_batch(config, sharding)
    if METHODS[config.train.method].samples == "teacher":
        return batch.teacher_prompt, batch.teacher_mask
    return batch.prompt, batch.prompt_mask


class Work(NamedTuple):
    """Floating-point operations of one update's matrix products, on all devices together."""

    rollout: float
    learn: float
    attention: float
    """Of both, over whole sequences; of keys that are masked, those in the query's own quarter."""


@functools.cache
def matmul_work(config: Config, shape: ModelConfig) -> Work:
    """Counted in the program for one device, where every shape is whole; kernels would hide theirs."""
    one = single_device()
    options = dataclasses.replace(config.model, attention="xla")
    config = dataclasses.replace(config, model=options)
    lowered = lower_update(config, make_model(config, shape, one), one)
    flops = matmul_flops_by_scope(lowered.as_text(dialect="hlo", debug_info=True))
    rollout = sum(count for scope, count in flops.items() if "/rollout" in scope)
    attention = sum(count for scope, count in flops.items() if "self_attention" in scope)
    return Work(rollout, sum(flops.values()) - rollout, attention)


def mesh_sizes(devices: int) -> list[Mapping[str, int]]:
    """Every mesh of so many devices: what the three axes can be."""
    return [
        {"data": data, "fsdp": fsdp, "tensor": devices // (data * fsdp)}
        for data in range(1, devices + 1)
        if devices % data == 0
        for fsdp in range(1, devices // data + 1)
        if (devices // data) % fsdp == 0
    ]
