"""Metrics of a sequence of stages, on a matrix worked by hand."""

import dataclasses
import json

import numpy as np
import pytest

from sdft_jax.continual.forgetting import (
    acquisition,
    average_accuracy,
    backward_transfer,
    by_skill,
    forgetting,
    measure_retention,
    normalise,
)
from sdft_jax.errors import SdftError
from sdft_jax.reporting.statistics import McNemar, mcnemar

ACCURACY = [
    [0.1, 0.2, 0.0],  # before training
    [0.9, 0.1, 0.0],  # after task 0
    [0.95, 0.8, 0.1],  # after task 1: task 0 still improves
    [0.6, 0.85, 0.7],  # after task 2: task 0 is forgotten, task 1 improves
]
TASKS = ["tool", "science", "medical"]


def test_metrics_by_hand():
    assert average_accuracy(ACCURACY) == pytest.approx((0.6 + 0.85 + 0.7) / 3)
    assert acquisition(ACCURACY) == pytest.approx((0.9 - 0.1, 0.8 - 0.2, 0.7 - 0.0))
    assert backward_transfer(ACCURACY) == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert forgetting(ACCURACY) == pytest.approx((0.95 - 0.6, 0.8 - 0.85))


def test_stages_before_its_own_do_not_count_as_forgotten():
    assert forgetting([[0.0, 0.9, 0.9], [0.0, 0.9, 0.9], [0.0, 0.5, 0.9], [0.0, 0.4, 0.5]])[
        1
    ] == pytest.approx(0.1)


def test_one_stage_has_nothing_to_forget():
    found = measure_retention(["tool"], [[0.2], [0.8]], prior=[0.6, 0.5])
    assert found.backward_transfer is None
    assert found.tasks[0].forgetting is None
    assert found.tasks[0].acquisition == pytest.approx(0.6)
    assert found.average_accuracy == 0.8
    assert found.general_forgetting == pytest.approx((0.1,))


def test_retention_without_verdicts():
    found = measure_retention(TASKS, ACCURACY, prior=[0.65, 0.64, 0.7, 0.6])
    assert [task.task for task in found.tasks] == TASKS
    assert [task.acquisition for task in found.tasks] == pytest.approx([0.8, 0.6, 0.7])
    assert [task.forgetting for task in found.tasks[:2]] == pytest.approx([0.35, -0.05])
    assert found.tasks[2].forgetting is None
    assert found.general_forgetting == pytest.approx((0.01, -0.05, 0.05))
    assert found.prior_since_base is None
    assert {(task.since_base, task.since_learned) for task in found.tasks} == {(None, None)}
    assert measure_retention(TASKS, ACCURACY).general_forgetting is None


def test_items_forgotten_and_gained():
    verdicts = [
        [[True, False, False], [False, True]],
        [[True, True, True], [False, True]],
        [[False, True, False], [True, True]],
    ]
    accuracy = [[float(np.mean(items)) for items in row] for row in verdicts]
    prior = [[True, True, True, False], [True] * 4, [False, False, True, True]]
    found = measure_retention(["a", "b"], accuracy, verdicts=verdicts, prior_verdicts=prior)
    first, second = found.tasks
    assert first.since_base == mcnemar(verdicts[0][0], verdicts[2][0]) == McNemar(1, 1, 1.0)
    assert first.since_learned == McNemar(2, 0, 0.5)
    assert second.since_base == McNemar(0, 1, 1.0)
    assert second.since_learned is None
    assert found.prior_since_base == McNemar(2, 1, 1.0)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["tasks"][0]["since_learned"]["forgotten"] == 2


def test_normalised_accuracy_by_hand():
    curves = {"sdft": [[0.4, 0.8], [0.4, 0.6]], "sft": [[0.4, 0.5, 0.3]]}
    found = normalise(curves, base=0.4)  # the most is 0.7, the mean of sdft's seeds
    np.testing.assert_allclose(found["sdft"], [[0, 4 / 3], [0, 2 / 3]])
    np.testing.assert_allclose(found["sft"], [[0, 1 / 3, -1 / 3]], atol=1e-12)
    assert found["sdft"].mean(axis=0).max() == pytest.approx(1.0)


def test_there_is_no_unit_where_nothing_was_learned():
    found = normalise({"sft": [[0.4, 0.4, 0.3]]}, base=0.4)
    assert np.isnan(found["sft"]).all()
    assert found["sft"].shape == (1, 3)
    assert normalise({}, base=0.4) == {}


def test_accuracy_by_skill():
    correct = [True, False, True, True, False]
    assert by_skill(correct, ["sort", "copy", "sort", None, "copy"]) == {"sort": 1.0, "copy": 0.0}
    assert list(by_skill(correct, ["z", "a", "z", "a", "z"]).items()) == [("z", 2 / 3), ("a", 0.5)]
    assert by_skill([True], [None]) == {}
    assert by_skill([], []) == {}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: average_accuracy([]), "accuracy has 0 rows"),
        (lambda: average_accuracy([[]]), "accuracy has 1 rows"),
        (lambda: forgetting([[0.1, 0.2], [0.3, 0.4]]), r"accuracy\[0\] has length 2 and not 1"),
        (lambda: acquisition([[0.1, 0.2], [0.3], [0.1, 0.1]]), r"accuracy\[1\] has length 1 and not 2"),
        (lambda: measure_retention(["a"], ACCURACY), "tasks has length 1 and not 3"),
        (lambda: measure_retention(TASKS, ACCURACY, prior=[0.5]), "prior has length 1 and not 4"),
        (
            lambda: measure_retention(TASKS, ACCURACY, verdicts=[[]] * 4),
            r"verdicts\[0\] has length 0 and not 3",
        ),
        (lambda: measure_retention(["a"], [[0], [1]], prior_verdicts=[[True], []]), "1 and 0 items"),
        (lambda: by_skill([True], []), "1 verdicts and 0 skills"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(SdftError, match=says):
        call()
