"""The results of an arm, compared with numbers computed by hand; the choice of rates, points and curves."""

import json

import pytest

from runs import config_of, sequence_settings
from sdft_jax.config import method_named
from sdft_jax.continual.arms import Plan
from sdft_jax.continual.stages import Arm, arm_stages, stage_directory, stages_of
from sdft_jax.continual.summary import (
    ceilings,
    chosen_rates,
    curve,
    mean,
    points,
    sequence_curves,
    stage_starts,
    summarize,
)
from sdft_jax.reporting.charts import Point
from sdft_jax.reporting.statistics import mean_interval

TASKS = ["one", "two"]


def result(correct: list[int], kl: float | None = None, length: float = 3.0) -> dict:
    accuracy = sum(correct) / len(correct)
    return {"accuracy": accuracy, "length": length, "kl_to_base": kl, "correct": correct}


BASE = {
    "one": result([0, 0, 0, 1]),
    "two": result([0, 0, 1, 1]),
    "more": result([0, 0]),
    "validation/one": result([0, 0]),
    "validation/two": result([0, 1]),
    "prior": result([1, 1, 1, 1]) | {"skills": ["add", "add", "cut", "cut"]},
}
FIRST = {
    "one": result([1, 1, 1, 1], 0.5),
    "two": result([0, 0, 0, 1], 0.6, 5.0),
    "more": result([1, 1]),
    "validation/one": result([1, 1]),
    "validation/two": result([0, 0]),
    "prior": result([1, 1, 0, 1], 0.1),
}
SECOND = {
    "one": result([1, 0, 1, 1], 0.7),
    "two": result([1, 1, 1, 0], 0.8, 7.0),
    "more": result([0, 1]),
    "validation/one": result([1, 0]),
    "validation/two": result([1, 1]),
    "prior": result([1, 0, 0, 1], 0.2),
}


def an_arm(method: str, rate: float = 1e-3, seed: int = 42) -> Arm:
    return Arm(method_named(method), rate, seed)


def test_summary_of_two_stages():
    row = summarize(an_arm("sft", 3e-5, 7), TASKS, BASE, [FIRST, SECOND])
    retention = row.pop("retention")
    assert row == {
        "method": "sft",
        "learning_rate": 3e-5,
        "seed": 7,
        "name": "sft-lr3e-5-seed7",
        "tasks": TASKS,
        "accuracy": [[0.25, 0.5], [1.0, 0.25], [0.75, 0.75]],
        "prior": [1.0, 0.75, 0.5],
        "kl_to_base": [0.1, 0.2],
        "kl_to_base_tasks": [[0.5, 0.6], [0.7, 0.8]],
        "length": [[3.0, 3.0], [3.0, 5.0], [3.0, 7.0]],
        "average_accuracy": 0.75,
        "validation": 0.75,
        "suites": {"more": 0.5},
        "skills": {"base": {"add": 1.0, "cut": 1.0}, "end": {"add": 0.5, "cut": 0.5}},
    }
    assert retention["average_accuracy"] == 0.75
    assert retention["backward_transfer"] == -0.25
    assert retention["general_forgetting"] == (0.25, 0.5)
    assert retention["prior_since_base"] == {"forgotten": 2, "gained": 0, "p": 0.5}
    one, two = retention["tasks"]
    assert (one["acquisition"], one["forgetting"], two["acquisition"], two["forgetting"]) == (
        0.75,
        0.25,
        0.25,
        None,
    )
    assert one["since_learned"] == {"forgotten": 1, "gained": 0, "p": 1.0}
    assert two["since_base"] == {"forgotten": 1, "gained": 2, "p": 1.0}


def test_joint_arm_has_no_retention():
    row = summarize(an_arm("joint", 3e-5, 7), TASKS, BASE, [SECOND])
    assert row["accuracy"] == [[0.25, 0.5], [0.75, 0.75]]
    assert row["prior"] == [1.0, 0.5]
    assert "retention" not in row


def test_summary_without_prior_skills_validation_and_suites():
    base, end = ({name: part for name, part in rows.items() if name in TASKS} for rows in (BASE, SECOND))
    row = summarize(an_arm("sft", 3e-5, 7), TASKS, base, [end, end])
    missing = {"prior": None, "validation": None, "suites": {}, "kl_to_base": [None, None]}
    assert {key: row[key] for key in missing} == missing
    assert row["retention"]["prior_since_base"] is None
    assert "skills" not in row


def test_ceilings_warn_if_the_demonstration_does_not_help():
    base = {"student": BASE, "teacher": {"one": result([1, 1, 1, 0]), "two": result([1, 0, 0, 1])}}
    assert ceilings(TASKS, base) == [
        "one: the base model's accuracy is 0.250, and 0.750 with the demonstration in context.",
        "two: the base model's accuracy is 0.500, and 0.500 with the demonstration in context: the "
        "demonstration does not help, so self-distillation has nothing to teach; use better demonstrations, "
        "a larger model, or SFT.",
    ]
    assert ceilings(TASKS, {"student": BASE}) == []
    assert ceilings(TASKS, {"student": BASE, "teacher": {"one": BASE["one"]}})[0].startswith("one: ")


def arm_row(
    method: str, rate: float, validation: float | None, test: float, prior: float = 0.5, seed: int = 0
):
    """Return the JSON of an arm with one task and these results."""
    return {
        "method": method,
        "learning_rate": rate,
        "seed": seed,
        "validation": validation,
        "average_accuracy": test,
        "prior": [1.0, prior],
        "tasks": ["a"],
        "accuracy": [[0.0], [test]],
    }


def test_rates_are_chosen_by_mean_validation_accuracy_over_seeds():
    arms = [
        arm_row("sft", 1e-4, 0.5, 1.0),
        arm_row("sft", 1e-3, 0.6, 0.0),
        arm_row("sdft", 1e-4, 0.2, 0.9),
        arm_row("sdft", 1e-4, 0.8, 0.9, seed=1),
        arm_row("sdft", 1e-3, 0.9, 0.1),
        arm_row("sdft", 1e-3, 0.0, 0.1, seed=1),
        arm_row("dft", 1e-3, 0.5, 0.5),
        arm_row("dft", 1e-4, 0.5, 0.4),
    ]
    assert chosen_rates(arms) == {"sft": 1e-3, "sdft": 1e-4, "dft": 1e-4}
    without = [arm | {"validation": None} for arm in arms]
    assert chosen_rates(without) == {"sft": 1e-4, "sdft": 1e-4, "dft": 1e-3}


def test_points_are_means_over_seeds_with_intervals():
    arms = [
        arm_row("sft", 1e-4, None, 0.2, 0.4),
        arm_row("sft", 1e-4, None, 0.6, 0.5, seed=1),
        arm_row("sft", 1e-3, None, 0.1, 0.9),
    ]
    prior, new = mean_interval([0.4, 0.5]), mean_interval([0.2, 0.6])
    assert points(arms, {"sft": 1e-4}) == [
        Point("sft", 0.45, 0.4, "1e-4", prior.half, new.half, True),
        Point("sft", 0.9, 0.1, "1e-3", None, None, False),
    ]


@pytest.fixture
def plan(tmp_path):
    """A plan with two stages and no inputs."""
    config = config_of("mini", tmp_path, *sequence_settings(tmp_path))
    return Plan(config, stages_of(config), {})


def write_evaluations(plan, arm, number, stage, *rows):
    file = stage_directory(plan.config, arm, number, stage).evaluations
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_curve_counts_steps_across_all_stages(plan):
    sdft, joint = an_arm("sdft"), an_arm("joint")
    one, two = plan.stages
    write_evaluations(
        plan,
        sdft,
        0,
        one,
        {"step": 0, "accuracy": 0.0, "accuracy/two": 0.1, "prior": 1.0, "teacher": 0.9},
        {"step": 7, "accuracy": 0.8, "accuracy/two": 0.2, "prior": 0.9, "kl_to_base": 0.3, "distance": 2.0},
    )
    write_evaluations(
        plan,
        sdft,
        1,
        two,
        {"step": 0, "accuracy": 0.2, "accuracy/one": 0.8},
        {"step": 3, "accuracy": 0.7, "accuracy/one": 0.6},
    )
    assert curve(plan, sdft) == [
        {"step": 0, "stage": "one", "tasks": {"one": 0.0, "two": 0.1}, "prior": 1.0},
        {"step": 7, "stage": "one", "tasks": {"one": 0.8, "two": 0.2}, "prior": 0.9, "kl_to_base": 0.3},
        {"step": 7, "stage": "two", "tasks": {"two": 0.2, "one": 0.8}},
        {"step": 10, "stage": "two", "tasks": {"two": 0.7, "one": 0.6}},
    ]
    (all_stages,) = arm_stages(joint, plan.stages)
    write_evaluations(plan, joint, 0, all_stages, {"step": 5, "accuracy/one": 0.5, "accuracy/two": 0.4})
    assert curve(plan, joint) == [{"step": 5, "stage": "joint", "tasks": {"one": 0.5, "two": 0.4}}]
    assert curve(plan, an_arm("oracle")) == []


def with_curve(method, seed, *rows):
    """Return the JSON of an arm with these (step, accuracy) and a base accuracy of 0.2."""
    steps = [{"step": step, "stage": "a", "tasks": {} if y is None else {"a": y}} for step, y in rows]
    return arm_row(method, 1e-3, None, 0.5, seed=seed) | {"accuracy": [[0.2], [0.5]], "curve": steps}


def test_curves_are_normalized_and_have_each_step_once():
    arms = [
        with_curve("sft", 0, (0, 0.2), (5, 0.4), (5, 0.4), (9, 0.6)),
        with_curve("sdft", 0, (0, 0.2), (9, 1.0)),
    ]
    sft, sdft = sequence_curves(arms)
    assert (sft.method, sft.task, sft.steps, sdft.steps) == ("sft", "a", [0, 5, 9], [0, 9])
    assert sft.values == [pytest.approx([0.0, 0.25, 0.5])]
    assert sdft.values == [pytest.approx([0.0, 1.0])]


def test_curve_of_a_seed_that_stopped_early_keeps_its_last_value():
    arms = [with_curve("sdft", 0, (0, 0.2), (5, 0.6), (10, 1.0)), with_curve("sdft", 1, (0, 0.2), (4, 1.0))]
    (sdft,) = sequence_curves(arms)
    assert sdft.steps == [0, 4, 5, 10]
    assert sdft.values == [pytest.approx([0, 0, 0.5, 1]), pytest.approx([0, 1, 1, 1])]


def test_no_curves_without_evaluations_during_training():
    assert sequence_curves([with_curve("sdft", 0, (5, None))]) == []
    assert sequence_curves([]) == []


def test_stages_start_at_their_first_step():
    rows = [("one", 0), ("one", 7), ("two", 7), ("two", 10), ("three", 10)]
    starts = stage_starts([{"stage": stage, "step": step} for stage, step in rows])
    assert starts == [(0, "one"), (7, "two"), (10, "three")]
    assert stage_starts([]) == []


def test_mean():
    assert mean([0.25, 0.75]) == 0.5
    assert mean([]) is None
