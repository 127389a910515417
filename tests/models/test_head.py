"""The head: an adapter adds a narrow product to the logits, in either dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.models.head import AdaptedHead, CappedHead, head_logits, products, softcap_slope

RNG = np.random.default_rng(0)
HIDDEN, MATRIX, A, B = (RNG.normal(size=shape) for shape in ((2, 5, 8), (12, 8), (8, 3), (12, 3)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.3)])
def test_an_adapted_head_equals_the_merged_one(dtype, tolerance):
    head = AdaptedHead(*(jnp.asarray(x, jnp.float32) for x in (MATRIX, A, B)))
    logits = head_logits(jnp.asarray(HIDDEN, dtype), head)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, HIDDEN @ (MATRIX + B @ A.T).T, atol=tolerance)


def test_a_plain_head_is_one_product():
    hidden, matrix = jnp.asarray(HIDDEN), jnp.asarray(MATRIX)
    assert products(hidden, matrix) == ((hidden, matrix),)
    np.testing.assert_allclose(head_logits(hidden, matrix), HIDDEN @ MATRIX.T, atol=1e-5)


def test_a_capped_head_bounds_the_logits():
    adapted = AdaptedHead(*(jnp.asarray(x, jnp.float32) for x in (MATRIX, A, B)))
    logits = head_logits(jnp.asarray(HIDDEN, jnp.float32), CappedHead(adapted, 3.0))
    expected = 3 * np.tanh(HIDDEN @ (MATRIX + B @ A.T).T / 3)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    slope = jax.grad(lambda z: 3 * jnp.tanh(z / 3))(2.0)
    np.testing.assert_allclose(softcap_slope(3 * jnp.tanh(2.0 / 3), 3.0), slope, rtol=1e-5)


def test_the_factors_are_never_merged():
    head = AdaptedHead(*map(jnp.asarray, (MATRIX, A, B)))
    shapes = [(x.hidden.shape, x.matrix.shape) for x in products(jnp.asarray(HIDDEN), head)]
    assert shapes == [((2, 5, 8), (12, 8)), ((2, 5, 3), (12, 3))]
