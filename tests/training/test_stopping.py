"""The score of an evaluation and the decision to stop, on sequences of scores with known results."""

import pytest

from sdft_jax.config.settings import TrainConfig
from sdft_jax.training.stopping import score, should_stop

FAR, NEAR = {"kl_to_base": 0.6}, {"kl_to_base": 0.5}


def test_score_is_the_validation_accuracy_or_else_the_accuracy_on_the_test_rows():
    options = TrainConfig()
    assert score({"accuracy": 0.4, "validation": 0.7, "prior": 0.9}, options) == 0.7
    assert score({"accuracy": 0.4, "prior": 0.9}, options) == 0.4
    assert score({"prior": 0.9, "distance": 2.0}, options) is None
    assert score({"accuracy": 0.0}, options) == 0.0


def test_model_beyond_the_maximum_distance_has_no_score():
    limited = TrainConfig(max_kl=0.5)
    assert score({"accuracy": 0.9} | FAR, limited) is None
    assert score({"accuracy": 0.9} | NEAR, limited) == 0.9
    assert score({"accuracy": 0.9} | FAR, TrainConfig()) == 0.9
    assert score({"accuracy": 0.9}, limited) == 0.9, "no distance is measured before training"


STOPS = {
    "no evaluation": (dict(stop_at=0.5, patience=1), [], {}, False),
    "no option is set": (dict(), [0.1, 1.0, 0.0, 0.0, 0.0], {}, False),
    "stop_at is reached": (dict(stop_at=0.5), [0.1, 0.5], {}, True),
    "stop_at is not reached": (dict(stop_at=0.5), [0.1, 0.4], {}, False),
    "stop_at was reached earlier": (dict(stop_at=0.5), [0.6, 0.4], {}, False),
    "two evaluations without improvement": (dict(patience=2), [0.1, 0.6, 0.5, 0.3], {}, True),
    "one evaluation without improvement": (dict(patience=2), [0.1, 0.6, 0.5], {}, False),
    "an improvement resets the count": (dict(patience=2), [0.6, 0.5, 0.7, 0.5], {}, False),
    "an equal score is not an improvement": (dict(patience=2), [0.1, 0.6, 0.6, 0.6], {}, True),
    "the first score is the best": (dict(patience=3), [0.2, 0.1, 0.2, 0.0], {}, True),
    "a missing score is not an improvement": (dict(patience=2), [0.2, None, None], {}, True),
    "the first scores follow missing ones": (dict(patience=2), [None, None, 0.0, 0.0], {}, False),
    "patience requires a score": (dict(patience=2), [None, None, None, None], {}, False),
    "above max_kl": (dict(max_kl=0.5), [0.1, None], FAR, True),
    "at max_kl": (dict(max_kl=0.5), [0.1, 0.2], NEAR, False),
    "far from the base without max_kl": (dict(stop_at=0.9), [0.1, 0.2], FAR, False),
    "stop_at is reached above max_kl": (dict(stop_at=0.5, max_kl=0.5), [0.1, None], FAR, True),
}


@pytest.mark.parametrize("case", STOPS)
def test_should_stop(case):
    options, scores, row, stop = STOPS[case]
    assert should_stop(TrainConfig(**options), scores, row) is stop


@pytest.mark.parametrize("loss", [0.0, 1e9])
def test_loss_has_no_influence(loss):
    row = {"accuracy": 0.3, "loss": loss, "reverse_kl": loss, "kl_to_base_new": loss}
    options = TrainConfig(stop_at=0.5, patience=3, max_kl=0.5)
    assert score(row, options) == 0.3
    assert not should_stop(options, [0.1, 0.3], row)
