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


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_optax_adamw_with_the_same_schedule(schedule, dtype):
    config = OptimizerConfig(learning_rate=3e-4, schedule=schedule, warmup=3, weight_decay=0.1, clip=1.0)
    ours = make_optimizer(config, 8)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate(config, 8), b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1),
    )
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(3, 4)), dtype), "b": jnp.asarray(rng.normal(size=5), dtype)}
    states = [optimizer.init(params) for optimizer in (ours, theirs)]
    for _ in range(8):
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        moves, after = [], []
        for optimizer, state in zip((ours, theirs), states, strict=True):
            updates, state = optimizer.update(gradients, state, params)
            moves.append(updates)
            after.append(state)
        tolerance = 1e-6 if dtype == "float32" else 1e-2  # two roundings of bfloat16
        for actual, expected in zip(*map(jax.tree.leaves, moves), strict=True):
            assert actual.dtype == dtype
            np.testing.assert_allclose(np.float64(actual), np.float64(expected), rtol=tolerance)
        states, params = after, optax.apply_updates(params, moves[1])


def test_the_peak_rate_is_part_of_the_state_and_not_of_the_program():
    """One program takes steps in proportion to the peak rate of the given state."""
    params = {"w": jnp.array([1.0, 2.0])}
    lowered, moves = [], []
    optimizers = [make_optimizer(OptimizerConfig(learning_rate=rate, warmup=2), 10) for rate in (1e-5, 0.1)]
    for optimizer in optimizers:
        state = optimizer.init(params)
        lowered.append(jax.jit(optimizer.update).lower(params, state, params).as_text())
        moves.append(np.asarray(optimizers[0].update(params, state, params)[0]["w"]))
    assert lowered[0] == lowered[1]
    np.testing.assert_allclose(moves[1], 1e4 * moves[0], rtol=1e-5)
