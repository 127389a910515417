"""Products of groups of rows, against a loop over the groups in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels.grouped_matmul import grouped_matmul

ROWS = 50


@pytest.mark.parametrize(
    "groups",
    [
        (40, 3, 0, 2),  # three rounds of blocks of 16 rows, and five rows after the last group
        (0, 0, 50, 0),
        (0, 0, 0, 0),
        (13, 12, 12, 13),
    ],
)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # the program for a GPU also runs on a CPU
def test_product_and_gradients_equal_those_of_a_loop_over_groups(groups, platform):
    rng = np.random.default_rng(0)
    x, matrices, d_out = (rng.normal(size=s).astype(np.float32) for s in ((ROWS, 3), (4, 3, 5), (ROWS, 5)))
    product = functools.partial(
        grouped_matmul, groups=jnp.array(groups, jnp.int32), platform=platform, expected=4
    )
    out, vjp = jax.vjp(jax.jit(lambda x, m: product(x, m)), x, matrices)
    expected, d_x, d_matrices = np.zeros((ROWS, 5)), np.zeros((ROWS, 3)), np.zeros((4, 3, 5))
    for group, end in enumerate(np.cumsum(groups)):
        own = slice(end - groups[group], end)
        expected[own] = x[own] @ matrices[group].astype(float)
        d_x[own] = d_out[own] @ matrices[group].T.astype(float)
        d_matrices[group] = x[own].T @ d_out[own].astype(float)
    for ours, theirs in zip((out, *vjp(d_out)), (expected, d_x, d_matrices), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
