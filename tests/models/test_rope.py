"""Frequencies against transformers where it is installed, and rotation against its definition."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.models.rope import inverse_frequencies, rope_from_dict, rope_table, rotate

SCALINGS = [
    {"rope_type": "linear", "factor": 8.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
]


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="transformers computes them with torch")
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6, 5e6])
def test_frequencies_equal_those_of_transformers(scaling, theta):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    length = 131072
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    rope = rope_from_dict(scaling, theta, length)
    np.testing.assert_allclose(
        inverse_frequencies(rope, 128), expected.numpy(), rtol=5e-6
    )  # theirs is float32 throughout
    assert rope.attention_factor == pytest.approx(factor)


def test_rotation_is_by_position_times_frequency():
    rope = rope_from_dict({}, 100.0, 64)
    positions = jnp.array([[0, 5]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1, 4)), jnp.float32)
    turned = np.asarray(rotate(x, *rope_table(rope, 4, positions)))[0, :, 0]
    pairs = np.asarray(x)[0, :, 0].reshape(2, 2, 2)  # first and second halves form the pairs
    pairs = pairs[:, 0] + 1j * pairs[:, 1]
    expected = pairs * np.exp(1j * np.array([[0, 0], [5, 5 * 100.0**-0.5]]))
    np.testing.assert_allclose(turned[:, :2] + 1j * turned[:, 2:], expected, rtol=1e-5, atol=1e-6)


def test_products_depend_on_the_distance_alone():
    rope = rope_from_dict(SCALINGS[1], 5e5, 131072)
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 64)), jnp.float32) for _ in range(2))

    def product(position, distance):
        at = [rope_table(rope, 64, jnp.array([[p]])) for p in (position + distance, position)]
        return float(jnp.sum(rotate(q, *at[0]) * rotate(k, *at[1])))

    assert product(3, 10) == pytest.approx(product(2000, 10), abs=1e-2)
