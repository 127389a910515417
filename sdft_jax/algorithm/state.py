"""The training state: its initialization, its placement on a mesh, and its update by a gradient."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sdft_jax.algorithm.learner import Learner
from sdft_jax.algorithm.teacher import init_teacher, move_teacher
from sdft_jax.algorithm.trainable import join, select, split
from sdft_jax.sampling.keys import make_key
from sdft_jax.sharding import tree_shardings
from sdft_jax.types import Params, TrainState


def init_state(learner: Learner, params: Params) -> TrainState:
    """Return the state before the first step, on the shardings of `state_shardings`; `params` are donated."""
    shardings = state_shardings(learner)
    params = jax.device_put(params, join(shardings.params, shardings.frozen))
    initial = functools.partial(_initial, learner)
    initialize = jax.jit(initial, out_shardings=shardings, donate_argnums=0)
    return initialize(params, jax.random.key_data(make_key(learner.config.train.seed)))


def abstract_state(learner: Learner) -> TrainState:
    """Return the shapes, dtypes and shardings of the state: the target of a checkpoint's restore."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        _shapes(learner),
        state_shardings(learner),
    )


def student_params(state: TrainState) -> Params:
    """Return all parameters of the student, trainable and frozen, as the model reads them."""
    return join(state.params, state.frozen)


def stored_part(learner: Learner, state: TrainState) -> TrainState:
    """Return what checkpoints hold of a state: the frozen base of adapters is read from its own files."""
    return dataclasses.replace(state, frozen={}) if learner.model.architecture.lora else state


def stored_student(learner: Learner) -> dict[str, Params]:
    """Return the shapes, dtypes and shardings of the student's parameters in a checkpoint, by their field."""
    state = stored_part(learner, abstract_state(learner))
    return {"params": state.params} | ({"frozen": state.frozen} if state.frozen else {})


def state_shardings(learner: Learner) -> TrainState:
    """Return the sharding of every array; teacher and moments are placed like their parameters."""
    model, sharding = learner.model, learner.model.sharding
    replicated: Any = sharding.replicated
    shapes = _shapes(learner)
    params = model.abstract_params(learner.config.model.param_dtype)
    every = tree_shardings(sharding, model.logical_axes(), params)
    trainable = select(every, shapes.params)
    opt_state = optax.tree_utils.tree_map_params(
        learner.optimizer,
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
    learner: Learner, state: TrainState, gradients: Params
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Return the state after an optimizer step, and the norms of gradient and update.

    The parameters are updated first, then the teacher (the order of Algorithm 1).
    """
    updates, opt_state = learner.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    teacher: Params = {}
    if learner.teacher is not None:
        with jax.named_scope("ema"):
            teacher = move_teacher(state.teacher, params, step, learner.teacher)
    norms = {"grad_norm": _norm(gradients), "update_norm": _norm(updates)}
    moved = dataclasses.replace(state, step=step, params=params, teacher=teacher, opt_state=opt_state)
    return moved, norms


def _initial(learner: Learner, params: Params, key: jax.Array) -> TrainState:
    trainable, frozen = split(params, learner.freeze)
    teacher = None if learner.teacher_is_base else learner.teacher
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trainable,
        frozen=frozen,
        teacher={} if teacher is None else init_teacher(trainable, teacher),
        opt_state=learner.optimizer.init(trainable),
        key=key,
    )


def _shapes(learner: Learner) -> TrainState:
    params = learner.model.abstract_params(learner.config.model.param_dtype)
    key = jax.eval_shape(lambda: jax.random.key_data(make_key(0)))
    return jax.eval_shape(functools.partial(_initial, learner), params, key)


def _norm(tree: Params) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))
