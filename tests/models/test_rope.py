"""Frequencies compared with transformers, and rotation compared with its definition."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.models.rope import inverse_frequencies, query_factors, rope_from_dict, rope_table, rotate

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
    {
        "rope_type": "longrope",
        "original_max_position_embeddings": 4096,
        "short_factor": np.linspace(1, 2, 64).tolist(),
        "long_factor": np.linspace(1, 60, 64).tolist(),
    },
]


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
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
    rope = rope_from_dict(scaling, theta, length)
    for long in (False, True):
        expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", length if long else 1)
        frequencies = inverse_frequencies(rope, 128, long)
        np.testing.assert_allclose(frequencies, expected.numpy(), rtol=5e-6)  # theirs are computed in float32
        assert rope.attention_factor == pytest.approx(factor)


def test_the_rotation_angle_is_position_times_frequency():
    rope = rope_from_dict({}, 100.0, 64)
    positions = jnp.array([[0, 5]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1, 4)), jnp.float32)
    rotated = np.asarray(rotate(x, *rope_table(rope, 4, positions, jnp.array([6]))))[0, :, 0]
    pairs = np.asarray(x)[0, :, 0].reshape(2, 2, 2)  # first and second halves form the pairs
    pairs = pairs[:, 0] + 1j * pairs[:, 1]
    expected = pairs * np.exp(1j * np.array([[0, 0], [5, 5 * 100.0**-0.5]]))
    np.testing.assert_allclose(rotated[:, :2] + 1j * rotated[:, 2:], expected, rtol=1e-5, atol=1e-6)


def test_factors_on_queries_are_those_of_the_formula():
    plain = rope_from_dict({}, 1e4, 64)
    scaled = dataclasses.replace(plain, original_max_position_embeddings=8, llama_4_scaling_beta=0.1)
    positions = jnp.array([[0, 7, 8, 100]])
    assert query_factors([plain], positions) is None
    factors = query_factors([plain, scaled], positions)
    assert factors.shape == (2, 1, 4, 1, 1)
    expected = [1.0, 1.0, 1 + 0.1 * np.log(2), 1 + 0.1 * np.log(13)]
    np.testing.assert_allclose(factors[:, 0, :, 0, 0], [[1.0] * 4, expected], rtol=1e-6)


def test_products_depend_only_on_the_distance():
    rope = rope_from_dict(SCALINGS[1], 5e5, 131072)
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 64)), jnp.float32) for _ in range(2))

    def product(position, distance):
        tables = [
            rope_table(rope, 64, jnp.array([[p]]), jnp.array([p + 1]))
            for p in (position + distance, position)
        ]
        return float(jnp.sum(rotate(q, *tables[0]) * rotate(k, *tables[1])))

    assert product(3, 10) == pytest.approx(product(2000, 10), abs=1e-2)
