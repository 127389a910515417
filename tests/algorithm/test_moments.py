"""Stochastic rounding, and optimizers with stored moments, compared with float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdft_jax.algorithm.moments import FLOAT8, Scaled, round_stochastically, rounding_keys, store_moments

ADAM = dict(b1=0.9, b2=0.999, eps=1e-8)


def rounded(x, dtype, count=4096):
    return np.float64(round_stochastically(jnp.full(count, x, jnp.float32), dtype, jax.random.key(0)))


@pytest.mark.parametrize(
    ("x", "dtype", "below", "above"),
    [
        (1.03125, FLOAT8, 1.0, 1.125),  # three bits after the point
        (-1.03125, FLOAT8, -1.125, -1.0),
        (300.0, FLOAT8, 288.0, 320.0),
        (1.25 * 2.0**-8, FLOAT8, 2.0**-8, 1.5 * 2.0**-8),  # below 2^-6, numbers are 2^-9 apart
        (-0.25 * 2.0**-9, FLOAT8, -(2.0**-9), 0.0),
        (1.001, jnp.bfloat16, 1.0, 1 + 2**-7),
        (1.001 * 2.0**-100, jnp.bfloat16, 2.0**-100, (1 + 2**-7) * 2.0**-100),
    ],
)
def test_rounding_goes_to_both_neighbours_and_keeps_the_mean(x, dtype, below, above):
    numbers = rounded(x, dtype)
    assert np.unique(numbers).tolist() == [below, above]
    share = (x - below) / (above - below)
    noise = np.sqrt(share * (1 - share) / numbers.size)
    assert abs(np.mean(numbers == numbers.max()) - share) < 4 * noise


@pytest.mark.parametrize("x", [0.0, 1.0, -0.75, 448.0, 2.0**-6])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, FLOAT8])
def test_numbers_of_the_dtype_stay(x, dtype):
    assert set(rounded(x, dtype)) == {x}


def test_infinity_and_nan_stay():
    assert set(rounded(np.inf, jnp.bfloat16)) == {np.inf}
    assert np.isnan(rounded(np.nan, jnp.bfloat16)).all()


def test_keys_differ_between_steps_streams_and_arrays():
    keys = [
        jax.random.key_data(key).tolist()
        for stream in (0, 1)
        for step in (0, 1)
        for key, _ in zip(rounding_keys(stream, jnp.int32(step)), range(2), strict=False)
    ]
    assert len({tuple(key) for key in keys}) == 8


def adam(gradients, **constants):
    """Return the updates and the moments of Adam in float64, from its definition."""
    b1, b2, eps = (ADAM | constants).values()
    m = v = np.zeros_like(gradients[0])
    updates = []
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        updates.append(m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps))
    return updates, m, v


def stored_adam(gradients, dtype):
    """Return the updates and the last state of optax's Adam with stored moments."""
    optimizer = store_moments(optax.scale_by_adam(**ADAM), dtype)
    params = {"w": jnp.zeros(gradients[0].shape)}
    state = optimizer.init(params)

    def step(state, gradient):
        updates, state = optimizer.update({"w": gradient}, state, params)
        return state, updates["w"]

    state, updates = jax.lax.scan(step, state, jnp.asarray(np.stack(gradients), jnp.float32))
    return np.float64(updates), state


@pytest.fixture(scope="module")
def gradients():
    """Gradients of 300 steps, of sizes from 1e-7 to 1e-3 within a row."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-7, -3, size=(8, 64))
    return [sizes * (0.5 + rng.normal(size=sizes.shape)) for _ in range(300)]


@pytest.mark.parametrize(
    ("dtype", "error", "bias"), [("float32", 1e-4, 1e-4), ("bfloat16", 0.03, 2e-3), ("float8", 0.25, 0.02)]
)
def test_steps_are_those_of_adam(gradients, dtype, error, bias):
    """`error` bounds the root mean square of the difference, `bias` its mean, relative to the steps."""
    expected, _, _ = adam(gradients)
    actual, _ = stored_adam(gradients, dtype)
    size = np.sqrt(np.mean(np.square(expected[100:])))
    difference = (actual - np.stack(expected))[100:]
    assert np.sqrt(np.mean(difference**2)) < error * size
    assert abs(np.mean(difference * np.sign(np.stack(expected)[100:]))) < bias * size


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_second_moment_does_not_stop(gradients, dtype):
    """In 300 steps without gradient it falls to 0.999^300 = 0.74; rounding to the nearest number would keep
    it. In 8 bits the mean of its root is right, and its own about 5 % too large.
    """
    _, _, before = adam(gradients)
    _, state = stored_adam([*gradients, *[np.zeros_like(gradients[0])] * 300], dtype)
    after = state.nu["w"]
    if dtype == "float8":
        after = np.square(np.float64(after.values) * 2.0 ** (np.int32(after.exponent) - 8))
    ratio = np.mean(np.float64(after) / before)
    assert ratio == pytest.approx(0.999**300, rel=0.02 if dtype == "bfloat16" else 0.08)


def test_eight_bits_hold_a_row_of_many_sizes():
    """The smallest moments of a row are 7e-5 of the largest, and not 0, as evenly spaced numbers would be."""
    gradient = np.array([[1.5, 1e-2, 1e-4, 0.0], [6e9, 4e7, 4e5, 0.0]])
    updates, state = stored_adam([gradient] * 3, "float8")
    np.testing.assert_allclose(updates[-1], np.sign(gradient), rtol=0.2)
    assert isinstance(state.nu["w"], Scaled)
    assert np.all((np.float64(state.nu["w"].values) > 0) == (gradient > 0))
    assert state.mu["w"].exponent[:, 0].tolist() == [-1, 31]  # 0.41 = 0.81 * 2^-1


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2), ("float8", 1)])
def test_bytes_of_the_state(dtype, bytes_each):
    params = {"w": jnp.zeros((3, 16, 64)), "b": jnp.zeros(64)}
    state = store_moments(optax.scale_by_adam(), dtype).init(params)
    exponents = 3 * 16 + 1 if dtype == "float8" else 0
    expected = 2 * (bytes_each * (3 * 16 * 64 + 64) + exponents) + 4
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == expected


def test_without_a_dtype_moments_have_that_of_their_parameter():
    params = {"a": jnp.zeros(4, jnp.bfloat16), "b": jnp.zeros(4)}
    optimizer = store_moments(optax.scale_by_lion(), None)
    state = optimizer.init(params)
    _, after = optimizer.update(jax.tree.map(lambda p: jnp.ones(4), params), state)
    for moments in (state.mu, after.mu):
        assert (moments["a"].dtype, moments["b"].dtype) == (jnp.bfloat16, jnp.float32)
