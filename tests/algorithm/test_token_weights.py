"""Loss masks, token weights and importance ratios, computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.token_weights import (
    aggregation_weights,
    importance_ratio,
    importance_weights,
    loss_mask,
    masked_mean,
    truncated,
)
from sdft_jax.config.settings import ObjectiveConfig
from sdft_jax.types import Rollout

EOS = 1
# Rows: EOS after two tokens; EOS at the last position; no EOS; padding only.
ROLLOUT = Rollout(
    tokens=jnp.array([[5, EOS, 0, 0], [5, 6, 7, EOS], [5, 6, 7, 8], [0, 0, 0, 0]]),
    mask=jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool),
    logprobs=jnp.log(jnp.array([[0.5, 0.5, 1, 1], [0.5] * 4, [0.5] * 4, [1.0] * 4])),
)
MASK = jnp.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
ONES = jnp.ones(3)
LOSSES = jnp.array([[3.0, 9.0, 9.0, 9.0], [1.0, 2.0, 6.0, 9.0], [9.0] * 4])


def test_truncated_completions_are_full_and_have_no_eos():
    np.testing.assert_array_equal(truncated(ROLLOUT, (EOS, 3)), [False, False, True, False])
    np.testing.assert_array_equal(truncated(ROLLOUT, ()), [False, True, True, False])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(), [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]),
        (dict(skip_tokens=1), [[0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]),
        (dict(skip_tokens=3), [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]),
        (dict(skip_tokens=9), [[0] * 4] * 4),
        (dict(truncated="mask"), [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]),
        (dict(truncated="mask", skip_tokens=1), [[0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
    ids=str,
)
def test_loss_mask(settings, expected):
    mask = loss_mask(ROLLOUT, (EOS,), ObjectiveConfig(**settings))
    np.testing.assert_array_equal(mask, np.array(expected, bool))


def total(aggregation, sample_weight=ONES, mask=MASK):
    weights = aggregation_weights(mask, sample_weight, ObjectiveConfig(aggregation=aggregation))
    assert np.all(np.asarray(weights)[~np.asarray(mask)] == 0)
    return float(jnp.sum(weights * LOSSES))


def test_aggregation_by_sequence_token_and_sum():
    """The rows have the token losses [3], [1, 2, 6] and none."""
    assert total("sum") == 12
    assert total("token") == pytest.approx(12 / 4)
    assert total("sequence") == pytest.approx((3 + (1 + 2 + 6) / 3 + 0) / 3)


def test_a_row_of_weight_zero_is_excluded():
    filler = jnp.array([1.0, 0.0, 0.0])
    assert total("sum", filler) == 3
    assert total("token", filler) == pytest.approx(3)
    assert total("sequence", filler) == pytest.approx(3)


def test_sample_weights():
    double = jnp.array([2.0, 1.0, 1.0])
    assert total("sum", double) == 2 * 3 + 9
    assert total("token", double) == pytest.approx((2 * 3 + 9) / (2 * 1 + 3))
    assert total("sequence", double) == pytest.approx((2 * 3 + 3 + 0) / 4)


@pytest.mark.parametrize("aggregation", ["sequence", "token", "sum"])
@pytest.mark.parametrize("case", ["no tokens", "no rows of weight"])
def test_empty_batches_have_zero_loss_and_zero_gradient(aggregation, case):
    mask, weight = (jnp.zeros_like(MASK), ONES) if case == "no tokens" else (MASK, 0 * ONES)

    def loss(x):
        weights = aggregation_weights(mask, weight, ObjectiveConfig(aggregation=aggregation))
        return jnp.sum(weights * x) + masked_mean(x, mask & (weight > 0)[:, None])

    value, gradient = jax.value_and_grad(loss)(LOSSES)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(LOSSES))


def test_importance_ratio():
    trainer = jnp.log(jnp.array([[0.25, 1.0, 0.1, 0.1], [0.5] * 4, [0.5] * 4, [0.3] * 4]))
    ratio = importance_ratio(trainer, ROLLOUT, ROLLOUT.mask)
    np.testing.assert_allclose(ratio, [[0.5, 2, 1, 1], [1] * 4, [1] * 4, [1] * 4], rtol=1e-6)


def test_importance_ratio_ignores_values_outside_the_mask():
    trainer = jnp.where(ROLLOUT.mask, ROLLOUT.logprobs, jnp.nan)
    assert np.all(np.asarray(importance_ratio(trainer, ROLLOUT, ROLLOUT.mask)) == 1)


def test_importance_weights():
    ratio = jnp.array([[0.5, 3.0, 1.0, 1.0], [0.2, 0.4, 0.6, 1.0], [1.0] * 4])
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 0], [0] * 4], bool)
    token = importance_weights(ratio, mask, ObjectiveConfig(importance="token", importance_cap=2.0))
    np.testing.assert_allclose(token, [[0.5, 2, 1, 1], [0.2, 0.4, 0.6, 1], [1] * 4])
    sequence = importance_weights(ratio, mask, ObjectiveConfig(importance="sequence", importance_cap=2.0))
    assert sequence.shape == ratio.shape
    np.testing.assert_allclose(sequence[0], (0.5 + 2) / 2)
    np.testing.assert_allclose(sequence[1], (0.2 + 0.4 + 0.6) / 3)
    np.testing.assert_array_equal(sequence[2], 0)  # a row without tokens, whose weights are 0


def test_masked_mean():
    assert masked_mean(LOSSES, MASK) == pytest.approx((3 + 1 + 2 + 6) / 4)
    assert masked_mean(jnp.where(MASK, LOSSES, jnp.nan), MASK) == pytest.approx(3)
    assert masked_mean(LOSSES, jnp.zeros_like(MASK)) == 0
