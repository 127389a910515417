"""The head: an adapter adds a narrow product to the logits, in either dtype."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.models.head import AdaptedHead, head_logits, products

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


def test_the_factors_are_never_merged():
    head = AdaptedHead(*map(jnp.asarray, (MATRIX, A, B)))
    shapes = [(x.hidden.shape, x.matrix.shape) for x in products(jnp.asarray(HIDDEN), head)]
    assert shapes == [((2, 5, 8), (12, 8)), ((2, 5, 3), (12, 3))]
