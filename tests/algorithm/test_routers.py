"""Statistics of routers and the load-balancing loss, worked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sdft_jax.algorithm.routers import balance_loss, router_stats, router_summary
from sdft_jax.models.experts import Decisions

MASK = jnp.array([[True, True], [True, False]])


def decisions(experts, probabilities, load):
    """Return the decisions of one layer for two rows of two tokens, of which the last does not count."""
    experts = jnp.asarray(experts, jnp.int16)[None]
    entropy = jnp.array([[1.0, 3.0], [2.0, 100.0]])
    return Decisions(experts, entropy, jnp.asarray(probabilities)[None], jnp.asarray(load)[None])


# tokens (0, 1), (0, 2) and (3, 1), of four experts with two per token
STUDENT = decisions(
    [[[0, 1], [0, 2]], [[3, 1], [3, 1]]],
    [[1.0, 0.5, 0.5, 0.0], [0.1, 0.2, 0.3, 0.4]],
    [[2.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]],
)


def test_statistics_are_sums_over_the_tokens_that_count():
    teacher = decisions([[[1, 0], [3, 2]], [[0, 2], [3, 1]]], [[0.0] * 4] * 2, [[0.0] * 4] * 2)
    stats = router_stats(STUDENT, teacher, MASK)
    np.testing.assert_array_equal(stats.entropy, [4, 2])
    np.testing.assert_array_equal(stats.agreement, [1.5, 0])
    summary = router_summary(stats, MASK)
    # the load of the four experts is 2, 2, 1 and 1
    expected = {"router_entropy": 2, "router_load_max": 2 / 1.5, "router_agreement": 0.5}
    assert {name: round(float(value), 6) for name, value in summary.items()} == {
        name: round(value, 6) for name, value in expected.items()
    }
    assert "router_agreement" not in router_summary(router_stats(STUDENT, None, MASK), MASK)


def test_balance_loss_is_a_sum_over_rows_of_shares_times_probabilities():
    weights = jnp.array([[0.25, 0.25], [0.5, 0.0]])
    first = 4 * (2 / 4 * 1 / 2 + 1 / 4 * 0.5 / 2 + 1 / 4 * 0.5 / 2)
    second = 4 * (1 / 2 * 0.2 + 1 / 2 * 0.4)
    value, gradient = jax.value_and_grad(
        lambda p: balance_loss(dataclasses.replace(STUDENT, probabilities=p), weights, MASK)
    )(STUDENT.probabilities)
    np.testing.assert_allclose(value, 0.5 * first + 0.5 * second, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], 0.5 * 4 * np.array([2, 1, 1, 0]) / 4 / 2, rtol=1e-6)


def test_balance_loss_is_one_for_even_use_and_the_number_of_experts_for_one_expert_of_each_token():
    def of(load, probabilities):
        one = Decisions(
            jnp.zeros((1, 1, 8, 1), jnp.int16),
            jnp.zeros((1, 8)),
            jnp.asarray(probabilities)[None, None],
            jnp.asarray(load)[None, None],
        )
        return balance_loss(one, jnp.full((1, 8), 1 / 8), jnp.ones((1, 8), bool))

    np.testing.assert_allclose(of([2.0] * 4, [2.0] * 4), 1, rtol=1e-6)
    np.testing.assert_allclose(of([8.0, 0, 0, 0], [8.0, 0, 0, 0]), 4, rtol=1e-6)
