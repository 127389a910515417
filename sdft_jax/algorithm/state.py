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
from sdft_jax.algorithm.moments import round_stochastically, rounding_keys
from sdft_jax.algorithm.teacher import init_teacher, move_teacher
from sdft_jax.algorithm.trainable import join, select, split
from sdft_jax.sampling.keys import make_key
from sdft_jax.sharding import derived_sharding, tree_shardings
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
    return TrainState(
        step=replicated,
        params=trainable,
        frozen=select(every, shapes.frozen),
        teacher=trainable if shapes.teacher else {},
        opt_state=_like_parameters(shapes.opt_state, shapes.params, trainable, replicated),
        key=replicated,
    )


def apply_gradients(
    learner: Learner, state: TrainState, gradients: Params
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Return the state after an optimizer step, and the norms of gradient and update.

    The parameters are updated first, then the teacher (the order of Algorithm 1).
    """
    updates, opt_state = learner.optimizer.update(gradients, state.opt_state, state.params)
    step = state.step + 1
    params = _moved(state, updates, stochastic=learner.config.optimizer.rounding == "stochastic")
    teacher: Params = {}
    if learner.teacher is not None:
        with jax.named_scope("ema"):
            teacher = move_teacher(state.teacher, params, step, learner.teacher)
    norms = {"grad_norm": _norm(gradients), "update_norm": _norm(updates)}
    moved = dataclasses.replace(state, step=step, params=params, teacher=teacher, opt_state=opt_state)
    return moved, norms


def _moved(state: TrainState, updates: Params, *, stochastic: bool) -> Params:
    """Return the parameters plus their updates, which are float32, rounded to the dtype of the parameters."""
    if not stochastic:
        return optax.apply_updates(state.params, updates)
    keys = rounding_keys(1, state.step)

    def add(p: Array, u: Array) -> Array:
        moved = p + u
        return moved if p.dtype == moved.dtype else round_stochastically(moved, p.dtype, next(keys))

    return jax.tree.map(add, state.params, updates)


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


def _like_parameters(opt_state: Any, params: Params, shardings: Params, replicated: Any) -> Any:
    """Return the sharding of each array of an optimizer's state, whose path has the keys of its parameter."""
    places = {
        _keys(path): (param.shape, sharding)
        for (path, param), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path: Any, leaf: Any) -> Any:
        known = places.get(_keys(path))
        return replicated if known is None else derived_sharding(leaf.shape, *known)

    return jax.tree_util.tree_map_with_path(place, opt_state)


def _keys(path: Any) -> tuple[str, ...]:
    """Return the keys of a path in dictionaries, without fields and indices of the optimizer's tuples."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _shapes(learner: Learner) -> TrainState:
    params = learner.model.abstract_params(learner.config.model.param_dtype)
    key = jax.eval_shape(lambda: jax.random.key_data(make_key(0)))
    return jax.eval_shape(functools.partial(_initial, learner), params, key)


def _norm(tree: Params) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))
