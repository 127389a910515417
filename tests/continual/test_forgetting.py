"""The metrics of a sequence of stages, on a matrix with results computed by hand."""

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
    normalize,
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


def test_metrics_of_three_stages():
    assert average_accuracy(ACCURACY) == pytest.approx((0.6 + 0.85 + 0.7) / 3)
    assert acquisition(ACCURACY) == pytest.approx((0.9 - 0.1, 0.8 - 0.2, 0.7 - 0.0))
    assert backward_transfer(ACCURACY) == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert forgetting(ACCURACY) == pytest.approx((0.95 - 0.6, 0.8 - 0.85))


def test_accuracy_before_a_tasks_own_stage_does_not_count_as_forgotten():
    assert forgetting([[0.0, 0.9, 0.9], [0.0, 0.9, 0.9], [0.0, 0.5, 0.9], [0.0, 0.4, 0.5]])[
        1
    ] == pytest.approx(0.1)


def test_one_stage_has_no_forgetting():
    retention = measure_retention(["tool"], [[0.2], [0.8]], prior=[0.6, 0.5])
    assert retention.backward_transfer is None
    assert retention.tasks[0].forgetting is None
    assert retention.tasks[0].acquisition == pytest.approx(0.6)
    assert retention.average_accuracy == 0.8
    assert retention.general_forgetting == pytest.approx((0.1,))


def test_retention_without_verdicts():
    retention = measure_retention(TASKS, ACCURACY, prior=[0.65, 0.64, 0.7, 0.6])
    assert [task.task for task in retention.tasks] == TASKS
    assert [task.acquisition for task in retention.tasks] == pytest.approx([0.8, 0.6, 0.7])
    assert [task.forgetting for task in retention.tasks[:2]] == pytest.approx([0.35, -0.05])
    assert retention.tasks[2].forgetting is None
    assert retention.general_forgetting == pytest.approx((0.01, -0.05, 0.05))
    assert retention.prior_since_base is None
    assert {(task.since_base, task.since_learned) for task in retention.tasks} == {(None, None)}
    assert measure_retention(TASKS, ACCURACY).general_forgetting is None


def test_forgotten_and_gained_items():
    verdicts = [
        [[True, False, False], [False, True]],
        [[True, True, True], [False, True]],
        [[False, True, False], [True, True]],
    ]
    accuracy = [[float(np.mean(items)) for items in row] for row in verdicts]
    prior = [[True, True, True, False], [True] * 4, [False, False, True, True]]
    retention = measure_retention(["a", "b"], accuracy, verdicts=verdicts, prior_verdicts=prior)
    first, second = retention.tasks
    assert first.since_base == mcnemar(verdicts[0][0], verdicts[2][0]) == McNemar(1, 1, 1.0)
    assert first.since_learned == McNemar(2, 0, 0.5)
    assert second.since_base == McNemar(0, 1, 1.0)
    assert second.since_learned is None
    assert retention.prior_since_base == McNemar(2, 1, 1.0)
    assert (
        json.loads(json.dumps(dataclasses.asdict(retention)))["tasks"][0]["since_learned"]["forgotten"] == 2
    )


def test_normalized_accuracy():
    curves = {"sdft": [[0.4, 0.8], [0.4, 0.6]], "sft": [[0.4, 0.5, 0.3]]}
    normalized = normalize(curves, base=0.4)  # the maximum is 0.7, the mean over sdft's seeds
    np.testing.assert_allclose(normalized["sdft"], [[0, 4 / 3], [0, 2 / 3]])
    np.testing.assert_allclose(normalized["sft"], [[0, 1 / 3, -1 / 3]], atol=1e-12)
    assert normalized["sdft"].mean(axis=0).max() == pytest.approx(1.0)


def test_without_an_improvement_normalized_accuracy_is_nan():
    normalized = normalize({"sft": [[0.4, 0.4, 0.3]]}, base=0.4)
    assert np.isnan(normalized["sft"]).all()
    assert normalized["sft"].shape == (1, 3)
    assert normalize({}, base=0.4) == {}


def test_accuracy_by_skill():
    correct = [True, False, True, True, False]
    assert by_skill(correct, ["sort", "copy", "sort", None, "copy"]) == {"sort": 1.0, "copy": 0.0}
    assert list(by_skill(correct, ["z", "a", "z", "a", "z"]).items()) == [("z", 2 / 3), ("a", 0.5)]
    assert by_skill([True], [None]) == {}
    assert by_skill([], []) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_accuracy([]), "accuracy has 0 rows: give one before training"),
        (lambda: average_accuracy([[]]), "accuracy has 1 rows: give one before training"),
        (
            lambda: forgetting([[0.1, 0.2], [0.3, 0.4]]),
            r"accuracy\[0\] has length 2 instead of 1: for T stages give T tasks",
        ),
        (lambda: acquisition([[0.1, 0.2], [0.3], [0.1, 0.1]]), r"accuracy\[1\] has length 1 instead of 2: "),
        (lambda: measure_retention(["a"], ACCURACY), "tasks has length 1 instead of 3: "),
        (lambda: measure_retention(TASKS, ACCURACY, prior=[0.5]), "prior has length 1 instead of 4: "),
        (
            lambda: measure_retention(TASKS, ACCURACY, verdicts=[[]] * 4),
            r"verdicts\[0\] has length 0 instead of 3: ",
        ),
        (lambda: measure_retention(["a"], [[0], [1]], prior_verdicts=[[True], []]), "1 and 0 items"),
        (lambda: by_skill([True], []), "1 verdicts and 0 skills"),
    ],
)
def test_errors(call, message):
    with pytest.raises(SdftError, match=message):
        call()
