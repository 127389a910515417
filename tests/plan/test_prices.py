"""The cost of a run at list prices, worked by hand, and at a given price."""

import math

import pytest

from plans import made_estimate
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.plan import prices
from sdft_jax.plan.prices import LIST_PRICES, PAGE, check_price, cost_of
from sdft_jax.plan.topologies import GENERATIONS

STEPS = load_config(None, ["train.steps=900"])


def test_run_of_900_updates_of_2_seconds_on_16_chips_takes_half_an_hour():
    cost = cost_of(STEPS, made_estimate(12, seconds=2.0))
    assert (cost.per_hour, cost.hours, cost.dollars) == pytest.approx((16 * 1.2, 0.5, 9.6))
    assert str(cost) == (
        f"$19.20 per hour at the list price of $1.20 per chip (on demand, us-west4, 2026-09; {PAGE}); a run "
        "of 900 updates takes 0.50 hours, $9.60, without start, evaluations and checkpoints."
    )
    spot = cost_of(STEPS, made_estimate(12, seconds=2.0), price=0.5)
    assert (spot.per_hour, spot.dollars) == (8.0, 4.0)
    assert str(spot).startswith("$8.00 per hour at $0.50 per chip (--price); a run of 900 updates takes ")


def test_price_is_per_chip_and_not_per_device():
    """v4:2x2x1 has four chips with two devices each, as v4-8 has."""
    assert cost_of(STEPS, made_estimate(12, topology="v4:2x2x1")).per_hour == pytest.approx(4 * 3.22)


def test_without_a_number_of_steps_the_cost_is_that_of_1000_rows():
    cost = cost_of(load_config(None, ["train.batch_size=32", "train.epochs=2"]), made_estimate(12))
    assert cost.updates == "a run of 2 epochs over 1,000 rows (62 updates)"
    assert cost.hours == pytest.approx(62 / 3600)


def test_generation_without_a_known_price_has_a_cost_only_at_a_given_price(monkeypatch):
    monkeypatch.setattr(prices, "LIST_PRICES", {})
    assert cost_of(STEPS, made_estimate(12)) is None
    assert cost_of(STEPS, made_estimate(12), price=1.0).per_hour == 16.0


def test_prices_are_of_known_generations():
    assert LIST_PRICES.keys() <= GENERATIONS.keys()


@pytest.mark.parametrize("price", [0.0, -1.0, math.nan, math.inf])
def test_price_that_is_not_positive_is_an_error(price):
    check_price(None)
    check_price(0.6)
    with pytest.raises(SdftError, match=rf"--price {price:g}: give US dollars per chip and hour, above 0\."):
        check_price(price)
