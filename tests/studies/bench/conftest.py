"""Benchmarks measure a single call for each round: tests need no precise times."""

import pytest

from sdft_jax.studies.bench import timing


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(timing, "TURN", 1e-9)
