"""Learning rates at single steps, clipping by global norm, and AdamW compared with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdft_jax.algorithm.optimizer import learning_rate, learning_rates, make_optimizer
from sdft_jax.config.settings import OptimizerConfig


def rates(steps, **settings):
    schedule = learning_rate(OptimizerConfig(learning_rate=1.0, **settings), steps)
    return [float(schedule(step)) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [4, 0.4])
def test_warmup_rises_from_the_first_step(schedule, warmup):
    first = rates(10, warmup=warmup, schedule=schedule)[:5]
    np.testing.assert_allclose(first, [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_decay_after_the_warmup():
    """Four warm-up steps are followed by six steps of decay."""
    np.testing.assert_allclose(rates(10, warmup=4, schedule="constant")[4:], 1)
    linear = [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    np.testing.assert_allclose(rates(10, warmup=4, schedule="linear")[4:], linear, rtol=1e-6)
    cosine = [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)]
    np.testing.assert_allclose(rates(10, warmup=4, schedule="cosine")[4:], cosine, rtol=1e-6)


def test_rates_of_all_steps_equal_those_of_each_step():
    config = OptimizerConfig(learning_rate=0.3, warmup=4, schedule="cosine")
    together = learning_rates(config, 10)
    assert isinstance(together, np.ndarray)
    np.testing.assert_allclose(
        together, [float(learning_rate(config, 10)(step)) for step in range(10)], rtol=1e-6
    )
    assert learning_rates(config, 0).shape == (0,)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_ends_at_zero(schedule):
    final = learning_rate(OptimizerConfig(learning_rate=1.0, warmup=2, schedule=schedule), 10)(10)
    assert float(final) == pytest.approx(0, abs=1e-7)


def test_without_warmup_the_first_rate_is_the_peak():
    assert rates(4, warmup=0, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("warmup", [4, 100])
def test_warmup_longer_than_the_run_ends_with_it(warmup):
    assert rates(4, warmup=warmup) == pytest.approx([0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_a_run_of_one_step_has_the_peak_rate(warmup):
    assert rates(1, warmup=warmup) == [1]


def first_update(gradient, **settings):
    config = OptimizerConfig(learning_rate=0.1, warmup=0, schedule="constant", **settings)
    optimizer = make_optimizer(config, 10)
    params = {"w": jnp.array([1.0, 2.0])}
    updates, _ = optimizer.update({"w": jnp.array(gradient)}, optimizer.init(params), params)
    return updates["w"]


def test_first_step_of_adam_is_the_rate_times_minus_the_sign():
    np.testing.assert_allclose(first_update([3.0, -4.0], clip=0.0), [-0.1, 0.1], rtol=1e-5)


def test_clip_is_by_global_norm():
    """Norm 5 becomes norm 1; with a large eps, Adam's update is proportional to the gradient."""
    scale = 0.1 / 1e6
    clipped = first_update([3.0, -4.0], clip=1.0, eps=1e6)
    np.testing.assert_allclose(clipped, -scale * np.array([0.6, -0.8]), rtol=1e-4)
    free = first_update([3.0, -4.0], clip=0.0, eps=1e6)
    np.testing.assert_allclose(free, -scale * np.array([3.0, -4.0]), rtol=1e-4)
    small = first_update([0.3, -0.4], clip=1.0, eps=1e6)
    np.testing.assert_allclose(small, -scale * np.array([0.3, -0.4]), rtol=1e-4)


def test_weight_decay_is_decoupled():
    np.testing.assert_allclose(first_update([0.0, 0.0], weight_decay=0.5), [-0.05, -0.1], rtol=1e-6)


def test_the_rate_follows_the_schedule_inside_the_optimizer():
    config = OptimizerConfig(learning_rate=1.0, warmup=2, schedule="constant")
    optimizer = make_optimizer(config, 4)
    params = {"w": jnp.zeros(1)}
    state, moves = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.ones(1)}, state, params)
        params = optax.apply_updates(params, updates)
        moves.append(float(updates["w"][0]))
    # in float32 Adam's bias correction, 1 - 0.999^t, has four significant digits
    np.testing.assert_allclose(moves, [-0.5, -1, -1], rtol=1e-4)


def trajectory(optimizer, params, gradients):
    """Return the updates of all steps from the same parameters."""
    state, moves = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        moves.append(jax.tree.map(np.float64, updates))
    return moves


def assert_same(ours, theirs, rtol=1e-6):
    for one, other in zip(ours, theirs, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-9), one, other)


def random_tree(rng, shapes, dtype="float32"):
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_equals_optax_with_the_same_schedule(name, schedule, dtype):
    """Parameters and gradients in bfloat16 are read as float32."""
    config = OptimizerConfig(
        name=name, schedule=schedule, learning_rate=3e-4, warmup=3, weight_decay=0.1, moments="float32"
    )
    rate = learning_rate(config, 8)
    theirs = {
        "adamw": optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1),
        "lion": optax.lion(rate, b1=0.9, b2=0.99, weight_decay=0.1),
    }[name]
    rng = np.random.default_rng(0)
    params, *gradients = (random_tree(rng, {"a": (3, 4), "b": (5,)}, dtype) for _ in range(9))
    ours = trajectory(make_optimizer(config, 8), params, gradients)
    params, *gradients = (jax.tree.map(jnp.float32, tree) for tree in (params, *gradients))
    assert_same(ours, trajectory(optax.chain(optax.clip_by_global_norm(1.0), theirs), params, gradients))


LAYERS, SHAPES = 3, {"q": (64, 4, 32), "gate": (64, 48), "bias": (4, 32)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adafactor_equals_that_of_optax_on_the_parameters_of_each_layer(dtype):
    config = OptimizerConfig(name="adafactor", learning_rate=3e-3, warmup=3, weight_decay=0.1, clip=0.0)
    theirs = optax.adafactor(
        learning_rate(config, 8), min_dim_size_to_factor=32, multiply_by_parameter_scale=False
    )
    rng = np.random.default_rng(0)
    stacked = {name: (LAYERS, *shape) for name, shape in SHAPES.items()}
    # gradients that grow, of sizes that differ between layers, so that steps are clipped in some layers only
    params, *gradients = (
        random_tree(rng, {"embed": (40, 64), "norm": (64,), "layers": stacked}, dtype) for _ in range(9)
    )
    scale = jnp.asarray([1.0, 100.0, 1e-4])
    for step, gradient in enumerate(gradients):
        gradient["layers"] = jax.tree.map(
            lambda g, step=step: (g * (scale ** (step % 3)).reshape(-1, *[1] * (g.ndim - 1))).astype(g.dtype),
            gradient["layers"],
        )
    ours = trajectory(make_optimizer(config, 8), params, gradients)
    params, *gradients = (jax.tree.map(jnp.float32, tree) for tree in (params, *gradients))

    def unstacked(tree):
        layers = {f"{i}": jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in range(LAYERS)}
        return {**tree, "layers": layers}

    rates = learning_rates(config, 8)
    expected = trajectory(theirs, unstacked(params), map(unstacked, gradients))
    for rate, move in zip(rates, expected, strict=True):  # decoupled decay at the rate, as for AdamW
        decay = unstacked(jax.tree.map(lambda p, rate=rate: rate * 0.1 * np.float64(p), params))
        move.update(jax.tree.map(np.subtract, move, decay))
    assert_same(map(unstacked, ours), expected, rtol=1e-5)


def test_adafactor_of_parameters_in_some_layers_only():
    """Stacks of different lengths have the same steps together and alone."""
    config = OptimizerConfig(name="adafactor", learning_rate=3e-3, warmup=0, clip=0.0)
    shapes = {"q": (2, 64, 32), "delta_z": (3, 64, 32), "gate": (5, 48, 40)}
    params, *gradients = (
        random_tree(np.random.default_rng(i), {"layers": shapes}, "float32") for i in range(4)
    )
    together = trajectory(make_optimizer(config, 8), params, gradients)
    for name in shapes:
        alone = [{"layers": {name: tree["layers"][name]}} for tree in (params, *gradients)]
        own = trajectory(make_optimizer(config, 8), alone[0], alone[1:])
        assert_same([{"layers": {name: move["layers"][name]}} for move in together], own, rtol=1e-6)


def test_adafactor_keeps_means_of_each_layer_in_float32():
    params = {"layers": {"q": jnp.zeros((LAYERS, 64, 4, 32), jnp.bfloat16)}, "embed": jnp.zeros((40, 64))}
    state = make_optimizer(OptimizerConfig(name="adafactor"), 8).init(params)
    arrays = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(state) if x.ndim]
    means = [(40,), (64,), (LAYERS, 4, 32), (LAYERS, 64, 4)]
    assert sorted(arrays) == sorted((shape, "float32") for shape in [*means, (1,), (LAYERS, 1)])


def test_the_sign_is_the_step_of_lion():
    """With b1 = 0.9 and b2 = 0.99: 0.1 g after one step, and 0.9 * 0.01 * 3 - 0.1 * 0.2 > 0 after two."""
    config = OptimizerConfig(name="lion", learning_rate=0.1, warmup=0, schedule="constant", clip=0.0)
    params = {"w": jnp.zeros(2)}
    moves = trajectory(
        make_optimizer(config, 9), params, [{"w": jnp.array(g)} for g in ([3, -4.0], [-0.2, 1])]
    )
    np.testing.assert_allclose([move["w"] for move in moves], [[-0.1, 0.1], [-0.1, -0.1]], rtol=1e-6)


OPTIMIZERS = [
    {"name": "adamw"},
    {"name": "adamw", "moments": "float8"},
    {"name": "lion"},
    {"name": "adafactor"},
]


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=str)
def test_every_optimizer_clips_and_decays_alike(settings):
    """The decay is rate * weight_decay * parameter; the gradient's norm does not matter above the clip."""
    params, large, zero = ({"w": jnp.full((4, 2), x)} for x in (2.0, 1e3, 0.0))
    plain = dict(settings, learning_rate=0.1, warmup=0, schedule="constant")
    decayed = make_optimizer(OptimizerConfig(**plain, weight_decay=0.5), 9)
    np.testing.assert_allclose(trajectory(decayed, params, [zero])[0]["w"], -0.1, rtol=1e-6)
    step, *rest = trajectory(make_optimizer(OptimizerConfig(**plain), 9), params, [large, large])
    larger = jax.tree.map(lambda g: 8 * g, large)
    np.testing.assert_allclose(step["w"], -0.1, rtol=0.1)  # 4 significant bits
    assert_same([step, *rest], trajectory(make_optimizer(OptimizerConfig(**plain), 9), params, [larger] * 2))


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=str)
def test_the_peak_rate_is_part_of_the_state_and_not_of_the_program(settings):
    """One program takes steps in proportion to the peak rate of the given state."""
    params = {"w": jnp.array([1.0, 2.0])}
    lowered, moves = [], []
    configs = [OptimizerConfig(**settings, learning_rate=rate, warmup=2) for rate in (1e-5, 0.1)]
    optimizers = [make_optimizer(config, 10) for config in configs]
    for optimizer in optimizers:
        state = optimizer.init(params)
        lowered.append(jax.jit(optimizer.update).lower(params, state, params).as_text())
        moves.append(np.asarray(optimizers[0].update(params, state, params)[0]["w"]))
    assert lowered[0] == lowered[1]
    np.testing.assert_allclose(moves[1], 1e4 * moves[0], rtol=1e-5)
