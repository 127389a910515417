"""The training state: made, laid out on a mesh, moved by a gradient, compiled around a step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sdft_jax.algorithm.teacher import init_teacher, move_teacher
from sdft_jax.algorithm.trainable import join, select, split
from sdft_jax.config import Config
from sdft_jax.config.methods import METHODS
from sdft_jax.config.settings import TeacherConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, ModelConfig
from sdft_jax.sharding import Sharding, single_device, tree_shardings
from sdft_jax.types import Params, TokenBatch, TrainState

Step = Callable[[TrainState, TokenBatch], tuple[TrainState, Any]]


def make_model(config: Config, shape: ModelConfig, sharding: Sharding, source: str = "") -> Model:
    """The model of a configuration, of an architecture that was read from `source`."""
    options = config.model
    return Model(shape, options.compute_dtype, options.remat, sharding, source, options.attention)


def init_state(
    model: Model, params: Params, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
    """State before the first step, every array laid out as its parameter; `params` are taken over."""
    shardings = state_shardings(model, optimizer, config)
    build = jax.jit(
        functools.partial(_build, optimizer=optimizer, config=config),
        out_shardings=shardings,
        donate_argnums=0,
    )
    params = jax.device_put(params, join(shardings.params, shardings.frozen))
    return build(params, jax.random.key_data(jax.random.key(config.train.seed)))


def abstract_state(model: Model, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
    """Shapes, dtypes and shardings of the state, without an array: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        _shapes(model, optimizer, config),
        state_shardings(model, optimizer, config),
    )


def state_shardings(model: Model, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
    """A sharding for every array of the state: teacher and optimizer moments lie as their parameters do."""
    sharding = sharding_of(model)
    replicated: Any = sharding.replicated
    shapes = _shapes(model, optimizer, config)
    every = tree_shardings(sharding, model.logical_axes(), model.abstract_params(config.model.param_dtype))
    trainable = select(every, shapes.params)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes.opt_state,
        trainable,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(
        step=replicated,
        params=trainable,
        frozen=select(every, shapes.frozen),
        teacher=trainable if shapes.teacher else {},
        opt_state=opt_state,
        key=replicated,
    )


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation, config: Config
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Optimizer, then teacher (Algorithm 1's order); also the norms of gradient and update."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    teacher: Params = {}
    if needs_teacher(config):
        with jax.named_scope("ema"):
            teacher = move_teacher(state.teacher, params, step, teacher_config(config))
    norms = {"grad_norm": _norm(gradients), "update_norm": _norm(updates)}
    moved = dataclasses.replace(state, step=step, params=params, teacher=teacher, opt_state=opt_state)
    return moved, norms


def compile_step(step: Step, model: Model, optimizer: optax.GradientTransformation, config: Config) -> Step:
    """One `jax.jit` around a step: state donated and laid out on the mesh, batch split over its rows."""
    sharding = sharding_of(model)
    check_batch(config, sharding)
    state = state_shardings(model, optimizer, config)
    rows = sharding.named("batch")

    def precise(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Any]:
        with model.matmul_precision():
            state, metrics = step(state, batch)
        scalars = {**metrics.scalars, "prompt_padding": _padding(batch)}
        return state, dataclasses.replace(metrics, scalars=scalars)

    # To look for a NaN, a step is run again on the state that it began with.
    donated = () if config.debug.nans else 0
    return jax.jit(
        precise,
        in_shardings=(state, rows),
        out_shardings=(state, sharding.replicated),
        donate_argnums=donated,
    )


def _padding(batch: TokenBatch) -> Float[Array, ""]:
    """Share of padding in the prompts of both roles."""
    masks = (batch.prompt_mask, batch.teacher_mask)
    columns = max(sum(mask.size for mask in masks), 1)
    real = jnp.asarray(sum(jnp.sum(mask, dtype=jnp.float32) for mask in masks))
    return 1 - real / columns


def check_batch(config: Config, sharding: Sharding) -> None:
    """Refuse a batch that micro-batches or the mesh do not divide."""
    batch = config.train.batch_size
    micro = config.train.micro_batch or batch
    if batch % micro:
        raise SdftError(
            f"train.batch_size={batch} is not divisible by train.micro_batch={micro}: change one."
        )
    check_rows(micro, "train.micro_batch" if config.train.micro_batch else "train.batch_size", sharding)


def micro_batches(config: Config) -> int:
    """Into how many parts an update cuts its batch."""
    return config.train.batch_size // (config.train.micro_batch or config.train.batch_size)


def check_rows(rows: int, option: str, sharding: Sharding) -> None:
    """Refuse a number of rows, set by `option`, that the mesh does not divide."""
    parts = sharding.size("batch")
    if rows % parts:
        raise SdftError(
            f"{option}={rows} is not divisible by the {parts} parts of mesh axes data x fsdp: "
            "change it, or mesh.data or mesh.fsdp."
        )


def _build(
    params: Params, key: jax.Array, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
    trainable, frozen = split(params, config.optimizer.freeze)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trainable,
        frozen=frozen,
        teacher=init_teacher(trainable, teacher_config(config)) if needs_teacher(config) else {},
        opt_state=optimizer.init(trainable),
        key=key,
    )


def _shapes(model: Model, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
    params = model.abstract_params(config.model.param_dtype)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return jax.eval_shape(functools.partial(_build, optimizer=optimizer, config=config), params, key)


def needs_teacher(config: Config) -> bool:
    """Whether the method has a teacher."""
    return METHODS[config.train.method].teacher is not None


def teacher_config(config: Config) -> TeacherConfig:
    """The `teacher` section; where the method's teacher is the initial model, whatever its schedule says."""
    if METHODS[config.train.method].teacher == "frozen":
        return dataclasses.replace(config.teacher, schedule="frozen")
    return config.teacher


def sharding_of(model: Model) -> Sharding:
    """The model's sharding; without one, everything lies on the first device."""
    return model.sharding or single_device()


def _norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))
