"""Gradient accumulation over micro-batches equals one large batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.accumulate import accumulate

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "b": jnp.ones(2)}
ROWS = {"x": RNG.normal(size=(8, 3)).astype(np.float32), "weight": RNG.uniform(size=8).astype(np.float32)}


def loss(params, rows):
    per_row = jnp.sum(jnp.tanh(rows["x"] @ params["w"] + params["b"][None, :]) ** 2, axis=1)
    return jnp.sum(rows["weight"] * per_row), {"per_row": per_row, "x": rows["x"]}


def run(parts, params=PARAMS):
    return jax.jit(lambda params, rows: accumulate(loss, params, rows, parts))(params, ROWS)


@pytest.fixture(scope="module")
def whole():
    return run(1)


def test_one_part_equals_value_and_grad(whole):
    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(PARAMS, ROWS)
    for actual, expected in zip(
        jax.tree.leaves(whole), jax.tree.leaves((value, stats, gradients)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_equal_one_batch(whole, parts):
    result = run(parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, whole)
    np.testing.assert_array_equal(result[1]["x"], ROWS["x"])  # statistics are in the order of the rows


def test_bfloat16_gradients_are_added_in_float32():
    """256 + 1 is 256 in bfloat16, so that a sum in bfloat16 would lose the seven ones."""
    rows = jnp.array([256.0, *[1.0] * 7])[:, None]

    def loss(params, rows):
        return jnp.sum(params["w"].astype(jnp.float32) * rows), rows

    params = {"w": jnp.zeros((1, 1), jnp.bfloat16)}
    _, _, gradients = jax.jit(lambda p: accumulate(loss, p, rows, 8))(params)
    assert gradients["w"].dtype == jnp.bfloat16
    assert gradients["w"] == jnp.bfloat16(263)
    assert jnp.bfloat16(263) > 256
