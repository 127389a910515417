"""The state's shapes, number formats and places, before and after it is made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import (
    abstract_state,
    apply_gradients,
    init_state,
    state_shardings,
    teacher_config,
)
from sdft_jax.algorithm.trainable import join
from sdft_jax.config import load_config
from sdft_jax.sharding import Sharding, make_mesh
from tiny import tiny_model

PARTS = ("params", "teacher", "opt_state")


def setup(*overrides, mesh=(2, 2, 2)):
    config = load_config(None, overrides)
    model, params = tiny_model(Sharding(make_mesh(*mesh)) if mesh else None)
    dtype = config.model.param_dtype
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    return model, params, make_optimizer(config.optimizer, 10), config


@pytest.fixture(scope="module")
def made():
    model, params, optimizer, config = setup("optimizer.freeze=[embed, layers/q$]")
    copy = jax.device_get(params)
    return copy, init_state(model, params, optimizer, config), abstract_state(model, optimizer, config)


def adam(state):
    (found,) = [
        part
        for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(part, optax.ScaleByAdamState)
    ]
    return found


def test_moments_lie_where_their_parameters_do(made):
    """`jax.jit(optimizer.init)` alone would put a whole copy on every device."""
    _, state, _ = made
    shardings = jax.tree.map(lambda p: p.sharding, state.params)
    for tree in (adam(state).mu, adam(state).nu, state.teacher):
        assert jax.tree.map(lambda p: p.sharding, tree) == shardings
    head = adam(state).mu["head"]
    assert head.sharding.shard_shape(head.shape) == (head.shape[0] // 2, head.shape[1] // 2)
    assert not head.sharding.is_fully_replicated
    assert adam(state).count.sharding.is_fully_replicated


def test_abstract_state_is_the_made_one(made):
    _, state, abstract = made
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for array, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (array.shape, array.dtype, array.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_values(made):
    params, state, _ = made
    assert state.step == 0
    jax.tree.map(np.testing.assert_array_equal, join(state.params, state.frozen), params)
    jax.tree.map(np.testing.assert_array_equal, state.teacher, jax.device_get(state.params))
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves((adam(state).mu, adam(state).nu)))
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(42)))


def test_frozen_parameters_have_neither_moments_nor_teacher(made):
    _, state, _ = made
    assert set(state.frozen) == {"embed", "layers"}
    assert set(state.frozen["layers"]) == {"q"}
    for tree in (state.params, state.teacher, adam(state).mu):
        assert "embed" not in tree
        assert "q" not in tree["layers"]


def dtypes(state):
    """Of parameters, teacher and moments; counts and the learning rate are scalars."""
    leaves = {part: [x for x in jax.tree.leaves(getattr(state, part)) if x.ndim] for part in PARTS}
    return {part: {str(x.dtype) for x in found} for part, found in leaves.items()}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("float32", "float32", "float32")),
        (["model.param_dtype=bfloat16"], ("bfloat16", "float32", "bfloat16")),
        (["preset=official"], ("bfloat16", "bfloat16", "bfloat16")),
    ],
    ids=str,
)
def test_number_formats(overrides, expected):
    model, _, optimizer, config = setup(*overrides)
    found = dtypes(abstract_state(model, optimizer, config))
    assert found == {part: {dtype} for part, dtype in zip(PARTS, expected, strict=True)}


NO_TEACHER = ["teacher.schedule=live", *(f"train.method={name}" for name in ("sft", "dft", "cpt", "oracle"))]


@pytest.mark.parametrize("override", NO_TEACHER)
def test_no_teacher_where_none_is_needed(override):
    model, _, optimizer, config = setup(override)
    assert abstract_state(model, optimizer, config).teacher == {}
    assert state_shardings(model, optimizer, config).teacher == {}


@pytest.mark.parametrize("method", ["reinvoke", "offline", "offline_kl"])
@pytest.mark.parametrize("schedule", ["ema", "live"])
def test_the_teacher_of_offline_methods_is_the_initial_model(method, schedule):
    config = load_config(
        None,
        [
            f"train.method={method}",
            f"teacher.schedule={schedule}",
            "teacher.dtype=bfloat16",
            "data.general=unused",
        ],
    )
    assert teacher_config(config) == dataclasses.replace(config.teacher, schedule="frozen")
    model, params = tiny_model()
    optimizer = make_optimizer(config.optimizer, 10)
    before = jax.device_get(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    state = init_state(model, params, optimizer, config)
    gradients = jax.tree.map(jnp.ones_like, state.params)
    after, _ = apply_gradients(state, gradients, optimizer, config)
    assert np.any(after.params["norm"] != state.params["norm"])
    jax.tree.map(np.testing.assert_array_equal, after.teacher, before)


def test_the_teacher_section_rules_sdft():
    config = load_config(None, ["teacher.schedule=periodic"])
    assert teacher_config(config) is config.teacher


def test_apply_gradients_moves_student_then_teacher():
    model, params, optimizer, config = setup(
        "optimizer.learning_rate=0.1", "optimizer.warmup=0", "teacher.rate=0.5", "optimizer.clip=0", mesh=None
    )
    before = jax.device_get(params)
    state = init_state(model, params, optimizer, config)
    gradients = jax.tree.map(jnp.ones_like, state.params)
    after, norms = jax.jit(lambda s, g: apply_gradients(s, g, optimizer, config))(state, gradients)
    count = sum(p.size for p in jax.tree.leaves(before))
    assert after.step == 1
    assert norms["grad_norm"] == pytest.approx(count**0.5, rel=1e-5)
    assert norms["update_norm"] == pytest.approx(0.1 * count**0.5, rel=1e-4)
    np.testing.assert_allclose(after.params["norm"], before["norm"] - 0.1, atol=1e-5)
    np.testing.assert_allclose(after.teacher["norm"], before["norm"] - 0.05, atol=1e-5)
