"""When to stop and what to choose, by sequences worked by hand; what an evaluation asks, and of whom."""

import dataclasses

import pytest

from runs import config_of
from sdft_jax.config.settings import TrainConfig
from sdft_jax.evaluation.scoring import Evaluation
from sdft_jax.models import load_model
from sdft_jax.training import evaluations
from sdft_jax.training.evaluations import assess
from sdft_jax.training.inputs import prepare
from sdft_jax.training.stopping import enough, score

FAR, NEAR = {"kl_to_base": 0.6}, {"kl_to_base": 0.5}


def test_the_score_is_the_accuracy_on_validation_rows_or_else_on_those_of_the_test():
    plain = TrainConfig()
    assert score({"accuracy": 0.4, "validation": 0.7, "prior": 0.9}, plain) == 0.7
    assert score({"accuracy": 0.4, "prior": 0.9}, plain) == 0.4
    assert score({"prior": 0.9, "distance": 2.0}, plain) is None
    assert score({"accuracy": 0.0}, plain) == 0.0


def test_what_is_too_far_from_the_base_has_no_score():
    strict = TrainConfig(max_kl=0.5)
    assert score({"accuracy": 0.9} | FAR, strict) is None
    assert score({"accuracy": 0.9} | NEAR, strict) == 0.9
    assert score({"accuracy": 0.9} | FAR, TrainConfig()) == 0.9
    assert score({"accuracy": 0.9}, strict) == 0.9, "before training there is no distance"


STOPS = {
    "nothing was measured": (dict(stop_at=0.5, patience=1), [], {}, False),
    "nothing was asked": (dict(), [0.1, 1.0, 0.0, 0.0, 0.0], {}, False),
    "it is reached": (dict(stop_at=0.5), [0.1, 0.5], {}, True),
    "not yet": (dict(stop_at=0.5), [0.1, 0.4], {}, False),
    "no longer": (dict(stop_at=0.5), [0.6, 0.4], {}, False),
    "two without a better one": (dict(patience=2), [0.1, 0.6, 0.5, 0.3], {}, True),
    "one without a better one": (dict(patience=2), [0.1, 0.6, 0.5], {}, False),
    "a better one in between": (dict(patience=2), [0.6, 0.5, 0.7, 0.5], {}, False),
    "the same is not better": (dict(patience=2), [0.1, 0.6, 0.6, 0.6], {}, True),
    "never better than at first": (dict(patience=3), [0.2, 0.1, 0.2, 0.0], {}, True),
    "what has no score is no better": (dict(patience=2), [0.2, None, None], {}, True),
    "the first scores after none": (dict(patience=2), [None, None, 0.0, 0.0], {}, False),
    "without any score there is no patience": (dict(patience=2), [None, None, None, None], {}, False),
    "too far": (dict(max_kl=0.5), [0.1, None], FAR, True),
    "not too far": (dict(max_kl=0.5), [0.1, 0.2], NEAR, False),
    "far, and nobody minds": (dict(stop_at=0.9), [0.1, 0.2], FAR, False),
    "reached, but too far": (dict(stop_at=0.5, max_kl=0.5), [0.1, None], FAR, True),
}


@pytest.mark.parametrize("case", STOPS)
def test_enough(case):
    options, scores, row, stop = STOPS[case]
    assert enough(TrainConfig(**options), scores, row) is stop


@pytest.mark.parametrize("loss", [0.0, 1e9])
def test_a_loss_decides_nothing(loss):
    row = {"accuracy": 0.3, "loss": loss, "reverse_kl": loss, "kl_to_base_new": loss}
    options = TrainConfig(stop_at=0.5, patience=3, max_kl=0.5)
    assert score(row, options) == 0.3
    assert not enough(options, [0.1, 0.3], row)


@pytest.fixture(scope="module")
def setting(tiny_directory):
    config = config_of(tiny_directory, "unused", "eval.validation=mini:blax:validation", "eval.limit=4")
    prepared = prepare(config, active=False)
    return config, prepared, *load_model(tiny_directory)


@pytest.fixture
def asked(monkeypatch):
    """(rows, whether the demonstration was shown, whether a distance was asked for) of every evaluation."""
    calls = []

    def evaluate(model, params, rows, *_, teacher, base, **__):
        calls.append((rows, teacher, base is not None))
        right = len(calls)
        verdicts = (True,) * right + (False,) * (10 - right)
        return Evaluation(verdicts, ("",) * 10, (right,) * 10, right / 100 if base else None)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    return calls


def test_before_training_the_ceiling_is_measured_and_no_distance(setting, asked):
    config, prepared, model, params = setting
    row = assess(model, params, config, prepared, prepared.directory, 0, active=False)
    assert row == {"accuracy": 0.1, "length": 1.0, "teacher": 0.2, "validation": 0.3, "prior": 0.4}
    assert asked == [
        (prepared.new, False, False),
        (prepared.new, True, False),
        (prepared.validation, False, False),
        (prepared.prior, False, False),
    ]


def test_during_training_distances_are_measured(setting, asked):
    config, prepared, model, params = setting
    row = assess(model, params, config, prepared, prepared.directory, 5, active=False)
    assert row == {
        "distance": 0.0,
        "accuracy": 0.1,
        "length": 1.0,
        "kl_to_base_new": 0.01,
        "validation": 0.2,
        "prior": 0.3,
        "kl_to_base": 0.03,
    }
    assert asked == [
        (prepared.new, False, True),
        (prepared.validation, False, False),
        (prepared.prior, False, True),
    ]


def test_from_another_base_distances_are_measured_from_the_start(setting, asked, half_directory):
    config, prepared, model, params = setting
    row = assess(model, params, config, prepared, str(half_directory), 0, active=False)
    assert row["distance"] > 0
    assert row.keys() >= {"kl_to_base", "kl_to_base_new", "teacher"}


def test_the_oracle_is_always_shown_the_demonstration_but_for_old_skills(setting, asked):
    config, prepared, model, params = setting
    oracle = dataclasses.replace(config.train, method="oracle")
    config = dataclasses.replace(config, train=oracle)
    assess(model, params, config, prepared, prepared.directory, 0, active=False)
    shown = {id(rows): teacher for rows, teacher, _ in asked}
    assert shown[id(prepared.new)] is shown[id(prepared.validation)] is True
    assert shown[id(prepared.prior)] is False, "there is no demonstration of them"
