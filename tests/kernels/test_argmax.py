"""The argmax of each platform, with whole rows and with rows that the mesh splits."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels.argmax import argmax


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_argmax_returns_the_first_of_equal_numbers(platform, split):
    rng = np.random.default_rng()
    for size in (1, 2, 31, 4096):
        x = rng.integers(-3, 4, (16, size)).astype(np.float32)  # with many ties
        x[0], x[1, : size // 2], x[2, -1] = -np.inf, -np.inf, np.inf
        np.testing.assert_array_equal(argmax(jnp.asarray(x), platform, split), np.argmax(x, axis=-1))
