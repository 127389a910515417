"""The choice of a token: truncations equal those of transformers, and samples have the exact distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.sampling.token_choice import choose_token, truncate

TRUNCATIONS = [
    dict(),
    dict(top_k=3),
    dict(top_k=1000),
    dict(top_p=0.8),
    dict(top_p=1e-6),
    dict(min_p=0.1),
    dict(min_p=1.0),
    dict(temperature=0.5, top_p=0.8),
    dict(top_k=10, top_p=0.7),
    dict(top_k=1000, top_p=0.5),
    dict(top_p=0.9, min_p=0.1),
    dict(temperature=0.7, top_k=20, top_p=0.95, min_p=0.05),
]


@pytest.mark.parametrize("settings", TRUNCATIONS, ids=str)
def test_truncation_equals_the_logits_processors_of_transformers(settings):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    sampling = SamplingConfig(**settings)
    logits = 3 * np.random.default_rng(0).normal(size=(8, 50)).astype(np.float32)
    scores = processors.TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits))
    if sampling.top_k:
        scores = processors.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = processors.TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = processors.MinPLogitsWarper(sampling.min_p)(None, scores)
    truncated = truncate(jnp.asarray(logits) / sampling.temperature, sampling)
    np.testing.assert_allclose(truncated, scores.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (dict(), 5),
        (dict(top_k=2), 2),
        (dict(top_k=9), 5),
        (dict(top_p=0.7), 2),
        (dict(top_p=0.8), 3),
        (dict(top_p=0.01), 1),
        (dict(min_p=0.2), 3),
        (dict(min_p=1.0), 1),
        # The first three, renormalized, are 0.56, 0.28 and 0.17; two of them reach 0.8.
        (dict(top_k=3, top_p=0.8), 2),
        # If min-p came first, three tokens would remain, renormalized as above, and top-p would keep two.
        (dict(top_p=0.8, min_p=0.2), 3),
        # Squared and renormalized: 0.73, 0.18, ...
        (dict(temperature=0.5, top_p=0.7), 1),
        (dict(temperature=0.5, min_p=0.2), 2),
    ],
    ids=str,
)
def test_truncation_computed_by_hand(settings, count):
    """The probabilities are 0.5, 0.25, 0.15, 0.07 and 0.03, in another order in the second row."""
    logits = np.log(np.array([[0.5, 0.25, 0.15, 0.07, 0.03], [0.07, 0.5, 0.03, 0.15, 0.25]], np.float32))
    sampling = SamplingConfig(**settings)
    kept = np.isfinite(truncate(jnp.asarray(logits) / sampling.temperature, sampling))
    np.testing.assert_array_equal(kept, logits >= np.sort(logits)[:, ::-1][:, [count - 1]])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_temperature_0_is_greedy_and_ignores_keys_and_truncation(platform):
    logits = jnp.array([[0.0, 2.0, 1.0], [3.0, -1.0, 3.0]])
    sampling = SamplingConfig(temperature=0.0, top_k=1, min_p=1.0)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 2)
        np.testing.assert_array_equal(choose_token(logits, keys, sampling, platform), [1, 0])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_frequencies_of_a_token_follow_its_probability(platform):
    """The chi-square test has a level of 0.1 %; temperature 0.5 squares the probabilities."""
    rows, probabilities = 8192, np.array([0.4, 0.3, 0.2, 0.1])
    logits = jnp.asarray(np.tile(np.log(probabilities), (rows, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), rows)
    tokens = choose_token(logits, keys, SamplingConfig(temperature=0.5, top_k=3), platform)
    expected = np.array([0.16, 0.09, 0.04]) / 0.29 * rows
    counts = np.bincount(np.asarray(tokens), minlength=4)
    assert counts[3] == 0
    assert chisquare(counts[:3], expected).pvalue > 1e-3
