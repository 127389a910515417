"""List prices of TPU chips, and the cost of a run at a price."""

from __future__ import annotations

import dataclasses
import math

from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.plan.estimate import Estimate
from sdft_jax.plan.topologies import parse_topology

PAGE = "https://cloud.google.com/tpu/pricing"
ROWS = 1000
"""The number of demonstrations whose cost is given if the configuration does not set the number of steps."""


@dataclasses.dataclass(frozen=True)
class Price:
    """The list price of a chip, on demand."""

    dollars: float
    """US dollars per chip and hour."""
    region: str
    """A region with this price."""
    date: str
    """The month of the price, such as 2026-08."""


LIST_PRICES = {
    "v4": Price(3.22, "us-central2", "2025-01"),
    "v5e": Price(1.20, "us-west4", "2026-09"),
    "v5p": Price(4.20, "us-east5", "2025-02"),
    "v6e": Price(2.70, "us-east5", "2026-08"),
    "tpu7x": Price(12.00, "us-central1", "2026-08"),
}
"""Generation -> the price that `PAGE` lists. Other regions differ; Spot capacity costs less."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of the updates of a run, without its start, compilation, evaluations and checkpoints."""

    per_hour: float
    """US dollars per hour, for all chips."""
    hours: float
    """The estimated duration of the updates."""
    updates: str
    """The updates, such as `a run of 200 updates`."""
    price: str
    """The price per chip and hour, with its source."""

    @property
    def dollars(self) -> float:
        """The cost of the updates, in US dollars."""
        return self.per_hour * self.hours

    def __str__(self) -> str:
        return (
            f"${self.per_hour:.2f} per hour at {self.price}; {self.updates} takes {self.hours:.2f} hours, "
            f"${self.dollars:.2f}, without start, evaluations and checkpoints."
        )


def check_price(price: float | None) -> None:
    """Raise SdftError unless a price is a positive number or None."""
    if price is not None and not (math.isfinite(price) and price > 0):
        raise SdftError(f"--price {price:g}: give US dollars per chip and hour, above 0.")


def cost_of(config: Config, estimate: Estimate, price: float | None = None) -> Cost | None:
    """Return the cost of a run; None if the price of its chips is not known.

    Args:
        config: its `train.steps`, or else `train.epochs` passes over `ROWS` rows.
        estimate: the topology, and the time of an update.
        price: US dollars per chip and hour; None for the list price.
    """
    topology = parse_topology(estimate.topology)
    listed = LIST_PRICES.get(topology.generation.name)
    if price is not None:
        text = f"${price:.2f} per chip (--price)"
    elif listed is not None:
        price = listed.dollars
        text = f"the list price of ${price:.2f} per chip (on demand, {listed.region}, {listed.date}; {PAGE})"
    else:
        return None
    train = config.train
    steps = train.steps or max(1, round(train.epochs * ROWS / train.batch_size))
    updates = f"a run of {steps:,} updates"
    if not train.steps:
        updates = f"a run of {train.epochs:g} epochs over {ROWS:,} rows ({steps:,} updates)"
    return Cost(price * topology.chips, steps * estimate.total_seconds / 3600, updates, text)
