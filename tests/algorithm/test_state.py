"""The state's shapes, dtypes and shardings, before and after it is initialized, and a gradient step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdft_jax.algorithm.state import abstract_state, apply_gradients, init_state, state_shardings
from sdft_jax.algorithm.trainable import join
from tiny import tiny_learner

PARTS = ("params", "teacher", "opt_state")


def setup(*overrides, mesh=(2, 2, 2)):
    """Return a learner, and the parameters in its dtype."""
    learner, params = tiny_learner(*overrides, mesh=mesh)
    return learner, jax.tree.map(lambda p: p.astype(learner.config.model.param_dtype), params)


@pytest.fixture(scope="module")
def initial():
    """(parameters, their state, the abstract state)."""
    learner, params = setup("optimizer.freeze=[embed, layers/q$]")
    copy = jax.device_get(params)
    return copy, init_state(learner, params), abstract_state(learner)


def adam(state):
    (moments,) = [
        part
        for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(part, optax.ScaleByAdamState)
    ]
    return moments


def test_moments_and_teacher_have_the_shardings_of_their_parameters(initial):
    """`jax.jit(optimizer.init)` alone would put a whole copy on every device."""
    _, state, _ = initial
    shardings = jax.tree.map(lambda p: p.sharding, state.params)
    for tree in (adam(state).mu, adam(state).nu, state.teacher):
        assert jax.tree.map(lambda p: p.sharding, tree) == shardings
    head = adam(state).mu["head"]
    assert head.sharding.shard_shape(head.shape) == (head.shape[0] // 2, head.shape[1] // 2)
    assert not head.sharding.is_fully_replicated
    assert adam(state).count.sharding.is_fully_replicated


def test_abstract_state_equals_the_initialized_state(initial):
    _, state, abstract = initial
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for array, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (array.shape, array.dtype, array.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_initial_values(initial):
    params, state, _ = initial
    assert state.step == 0
    jax.tree.map(np.testing.assert_array_equal, join(state.params, state.frozen), params)
    jax.tree.map(np.testing.assert_array_equal, state.teacher, jax.device_get(state.params))
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves((adam(state).mu, adam(state).nu)))
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(42, impl="threefry2x32")))


def test_frozen_parameters_have_neither_moments_nor_teacher(initial):
    _, state, _ = initial
    assert set(state.frozen) == {"embed", "layers"}
    assert set(state.frozen["layers"]) == {"q"}
    for tree in (state.params, state.teacher, adam(state).mu):
        assert "embed" not in tree
        assert "q" not in tree["layers"]


def test_parameters_are_donated():
    learner, params = setup()
    params = jax.device_put(params, join(state_shardings(learner).params, {}))
    init_state(learner, params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def dtypes(state):
    """Return the dtypes of parameters, teacher and moments, without the scalars of the optimizer."""
    leaves = {part: [x for x in jax.tree.leaves(getattr(state, part)) if x.ndim] for part in PARTS}
    return {part: {str(x.dtype) for x in arrays} for part, arrays in leaves.items()}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("float32", "float32", "float32")),
        (["model.param_dtype=bfloat16"], ("bfloat16", "float32", "bfloat16")),
        (["preset=official"], ("bfloat16", "bfloat16", "bfloat16")),
    ],
    ids=str,
)
def test_dtypes(overrides, expected):
    learner, _ = setup(*overrides)
    expected_dtypes = {part: {dtype} for part, dtype in zip(PARTS, expected, strict=True)}
    assert dtypes(abstract_state(learner)) == expected_dtypes


NO_COPY = ["teacher.schedule=live", *(f"train.method={name}" for name in ("sft", "dft", "cpt", "oracle"))]


@pytest.mark.parametrize("override", NO_COPY)
def test_settings_without_a_copy_of_the_teacher(override):
    learner, _ = setup(override)
    assert abstract_state(learner).teacher == {}
    assert state_shardings(learner).teacher == {}


@pytest.mark.parametrize("method", ["reinvoke", "offline", "offline_kl"])
@pytest.mark.parametrize("schedule", ["ema", "live"])
def test_the_teacher_of_offline_methods_stays_the_initial_model(method, schedule):
    learner, params = tiny_learner(
        f"train.method={method}",
        f"teacher.schedule={schedule}",
        "teacher.dtype=bfloat16",
        "data.general=unused",
    )
    before = jax.device_get(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    state = init_state(learner, params)
    gradients = jax.tree.map(jnp.ones_like, state.params)
    after, _ = jax.jit(lambda s, g: apply_gradients(learner, s, g))(state, gradients)
    assert np.any(after.params["norm"] != state.params["norm"])
    jax.tree.map(np.testing.assert_array_equal, after.teacher, before)


def test_apply_gradients_moves_the_student_and_then_the_teacher():
    learner, params = setup(
        "optimizer.learning_rate=0.1", "optimizer.warmup=0", "teacher.rate=0.5", "optimizer.clip=0", mesh=None
    )
    before = jax.device_get(params)
    state = init_state(learner, params)
    gradients = jax.tree.map(jnp.ones_like, state.params)
    after, norms = jax.jit(lambda s, g: apply_gradients(learner, s, g))(state, gradients)
    count = sum(p.size for p in jax.tree.leaves(before))
    assert after.step == 1
    assert norms["grad_norm"] == pytest.approx(count**0.5, rel=1e-5)
    assert norms["update_norm"] == pytest.approx(0.1 * count**0.5, rel=1e-4)
    np.testing.assert_allclose(after.params["norm"], before["norm"] - 0.1, atol=1e-5)
    np.testing.assert_allclose(after.teacher["norm"], before["norm"] - 0.05, atol=1e-5)


OPTIMIZERS = {
    "adamw": [],
    "adamw, bfloat16": ["optimizer.moments=bfloat16"],
    "adamw, float8": ["optimizer.moments=float8"],
    "lion, float8": ["optimizer.name=lion", "optimizer.moments=float8"],
    "adafactor": ["optimizer.name=adafactor"],
    "bfloat16": ["model.param_dtype=bfloat16", "optimizer.rounding=stochastic"],
    "adapters": ["lora.rank=4", "optimizer.moments=float8"],
}


def named(tree):
    """Return path -> array, without indices of tuples, such as `.mu['layers']['q']`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keep = (jax.tree_util.GetAttrKey, jax.tree_util.DictKey)
    return {"".join(str(key) for key in path if isinstance(key, keep)): x for path, x in leaves}


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (
            "adamw, float8",
            {  # of layers [2, 32, 64]: width over fsdp, hidden over tensor
                ".mu['layers']['gate'].values": (2, 16, 32),
                ".nu['layers']['gate'].values": (2, 16, 32),
                ".nu['layers']['gate'].exponent": (2, 16, 1),
                ".mu['layers']['down'].exponent": (2, 32, 1),  # [2, 64, 32]
                ".mu['head'].values": (16, 16),
            },
        ),
        (
            "adafactor",
            {
                ".v_row['layers']['gate']": (2, 16),
                ".v_col['layers']['gate']": (2, 32),
                ".v['layers']['gate']": (2, 1),
                ".v['layers']['q']": (2, 16, 2, 8),  # [2, 32, 4, 8] has no two axes of 32
                ".v_row['layers']['q']": (2, 1),
            },
        ),
    ],
)
def test_shards_of_other_shapes_than_the_parameter(optimizer, expected):
    learner, params = setup(*OPTIMIZERS[optimizer])
    arrays = named(init_state(learner, params).opt_state)
    assert {name: arrays[name].addressable_shards[0].data.shape for name in expected} == expected


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_the_same_on_every_mesh(optimizer):
    """Three steps with the same gradients, with the same random bits for every number.

    The norm for clipping is a sum, whose last bit depends on the mesh, and may round a number the other way.
    """
    clip = 1 if optimizer in ("adamw", "adafactor") else 0
    settings, results = ("optimizer.learning_rate=0.01", f"optimizer.clip={clip}"), []
    for mesh in ((1, 1, 1), (2, 2, 2)):
        learner, params = setup(*OPTIMIZERS[optimizer], *settings, mesh=mesh)
        state = init_state(learner, params)
        step = jax.jit(lambda s, g, learner=learner: apply_gradients(learner, s, g)[0])
        rng = np.random.default_rng(0)
        for _ in range(3):
            gradients = jax.tree.map(
                lambda p, rng=rng: rng.normal(size=p.shape).astype(p.dtype), state.params
            )
            state = step(state, jax.device_put(gradients, state_shardings(learner).params))
        abstract = abstract_state(learner)
        assert jax.tree.structure(state) == jax.tree.structure(abstract)
        assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(abstract)]
        results.append(jax.device_get(state))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        scale = np.max(np.abs(np.float64(one)), initial=1e-30)
        np.testing.assert_allclose(np.float64(other) / scale, np.float64(one) / scale, atol=1e-5)


def test_stochastic_rounding_keeps_the_mean_of_small_steps():
    """A step of 1e-4 is 1/39 of the distance of the numbers of bfloat16 below 1, and is lost otherwise."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        learner, params = setup(
            "model.param_dtype=bfloat16",
            f"optimizer.rounding={rounding}",
            "optimizer.learning_rate=1e-4",
            "optimizer.schedule=constant",
            "optimizer.warmup=0",
            mesh=None,
        )
        ones = jax.tree.map(jnp.ones_like, params)
        state = init_state(learner, ones)
        step = jax.jit(lambda s, g, learner=learner: apply_gradients(learner, s, g)[0])
        gradients = jax.device_get(jax.tree.map(jnp.ones_like, state.params))
        for _ in range(5):
            state = step(state, gradients)
        moved[rounding] = np.mean(1 - np.float64(state.params["layers"]["gate"]))
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(5e-4, rel=0.15)  # 4,096 numbers
