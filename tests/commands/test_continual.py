"""What a continual run reports, by matrices worked by hand; what its command leaves, refuses and takes."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from runs import config_of, content_of, sequence_settings, write_config
from sdft_jax import cli
from sdft_jax.commands import continual
from sdft_jax.continual.arms import Plan
from sdft_jax.continual.stages import Arm, directory_of, joined, stages_of
from sdft_jax.continual.summary import ceilings, chosen_rates, curve, points, sequence_curves, summarise
from sdft_jax.reporting.charts import Point
from sdft_jax.reporting.sinks import EVALUATIONS
from sdft_jax.reporting.statistics import mean_interval

pytestmark = pytest.mark.usefixtures("shared_compilations")

TASKS = ["one", "two"]


def found(correct: list[int], kl: float | None = None, length: float = 3.0) -> dict:
    accuracy = sum(correct) / len(correct)
    return {"accuracy": accuracy, "length": length, "kl_to_base": kl, "correct": correct}


BASE = {
    "one": found([0, 0, 0, 1]),
    "two": found([0, 0, 1, 1]),
    "more": found([0, 0]),
    "validation/one": found([0, 0]),
    "validation/two": found([0, 1]),
    "prior": found([1, 1, 1, 1]) | {"skills": ["add", "add", "cut", "cut"]},
}
FIRST = {
    "one": found([1, 1, 1, 1], 0.5),
    "two": found([0, 0, 0, 1], 0.6, 5.0),
    "more": found([1, 1]),
    "validation/one": found([1, 1]),
    "validation/two": found([0, 0]),
    "prior": found([1, 1, 0, 1], 0.1),
}
SECOND = {
    "one": found([1, 0, 1, 1], 0.7),
    "two": found([1, 1, 1, 0], 0.8, 7.0),
    "more": found([0, 1]),
    "validation/one": found([1, 0]),
    "validation/two": found([1, 1]),
    "prior": found([1, 0, 0, 1], 0.2),
}


def test_the_summary_of_two_stages_worked_by_hand():
    row = summarise(Arm("sft", 3e-5, 7), TASKS, BASE, [FIRST, SECOND])
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


def test_one_training_for_all_stages_forgets_nothing_between_them():
    row = summarise(Arm("joint", 3e-5, 7), TASKS, BASE, [SECOND])
    assert row["accuracy"] == [[0.25, 0.5], [0.75, 0.75]]
    assert row["prior"] == [1.0, 0.5]
    assert "retention" not in row


def test_without_prior_skills_or_validation_there_is_nothing_to_say_of_them():
    base, end = ({name: part for name, part in rows.items() if name in TASKS} for rows in (BASE, SECOND))
    row = summarise(Arm("sft", 3e-5, 7), TASKS, base, [end, end])
    missing = {"prior": None, "validation": None, "suites": {}, "kl_to_base": [None, None]}
    assert {key: row[key] for key in missing} == missing
    assert row["retention"]["prior_since_base"] is None
    assert "skills" not in row


def test_a_teacher_that_is_not_above_the_base_has_nothing_to_teach():
    base = {"student": BASE, "teacher": {"one": found([1, 1, 1, 0]), "two": found([1, 0, 0, 1])}}
    helps, does_not = ceilings(TASKS, base)
    assert helps == "one: the base model is right in 0.250, shown the demonstration in 0.750."
    assert does_not.startswith("two: the base model is right in 0.500, shown the demonstration in 0.500: ")
    assert "nothing to teach here; use better demonstrations, a larger model, or SFT." in does_not
    assert ceilings(TASKS, {"student": BASE}) == []
    assert ceilings(TASKS, {"student": BASE, "teacher": {"one": BASE["one"]}})[0].startswith("one: ")


def arm(method: str, rate: float, validation: float | None, test: float, prior: float = 0.5, seed: int = 0):
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


def test_rates_are_chosen_on_validation_rows_by_the_mean_over_seeds():
    arms = [
        arm("sft", 1e-4, 0.5, 1.0),
        arm("sft", 1e-3, 0.6, 0.0),
        arm("sdft", 1e-4, 0.2, 0.9),
        arm("sdft", 1e-4, 0.8, 0.9, seed=1),
        arm("sdft", 1e-3, 0.9, 0.1),
        arm("sdft", 1e-3, 0.0, 0.1, seed=1),
        arm("dft", 1e-3, 0.5, 0.5),
        arm("dft", 1e-4, 0.5, 0.4),
    ]
    assert chosen_rates(arms) == {"sft": 1e-3, "sdft": 1e-4, "dft": 1e-4}
    without = [dict(arm, validation=None) for arm in arms]
    assert chosen_rates(without) == {"sft": 1e-4, "sdft": 1e-4, "dft": 1e-3}


def test_points_are_means_over_seeds():
    arms = [
        arm("sft", 1e-4, None, 0.2, 0.4),
        arm("sft", 1e-4, None, 0.6, 0.5, seed=1),
        arm("sft", 1e-3, None, 0.1, 0.9),
    ]
    prior, new = mean_interval([0.4, 0.5]), mean_interval([0.2, 0.6])
    assert points(arms, {"sft": 1e-4}) == [
        Point("sft", 0.45, 0.4, "1e-4", prior.half, new.half, True),
        Point("sft", 0.9, 0.1, "1e-3", None, None, False),
    ]


@pytest.fixture
def plan(tmp_path):
    """Two stages and the files of their evaluations, without anything else."""
    config = config_of("mini", tmp_path, *sequence_settings(tmp_path))
    return Plan(config, stages_of(config), {}, True)


def write_evaluations(plan, arm, number, stage, *rows):
    directory = directory_of(plan.config, arm, number, stage)
    directory.mkdir(parents=True)
    (directory / EVALUATIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_curve_counts_steps_through_all_stages(plan):
    sdft, joint = Arm("sdft", 1e-3, 42), Arm("joint", 1e-3, 42)
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
    write_evaluations(
        plan, joint, 0, joined(plan.stages), {"step": 5, "accuracy/one": 0.5, "accuracy/two": 0.4}
    )
    assert curve(plan, joint) == [{"step": 5, "stage": "joint", "tasks": {"one": 0.5, "two": 0.4}}]
    assert curve(plan, Arm("oracle", 1e-3, 42)) == []


def with_curve(method, seed, *rows):
    """An arm whose base has 0.2 of its one task."""
    steps = [{"step": step, "stage": "a", "tasks": {} if y is None else {"a": y}} for step, y in rows]
    return arm(method, 1e-3, None, 0.5, seed=seed) | {"accuracy": [[0.2], [0.5]], "curve": steps}


def test_curves_are_in_units_of_the_best_method_and_steps_count_once():
    arms = [
        with_curve("sft", 0, (0, 0.2), (5, 0.4), (5, 0.4), (9, 0.6)),
        with_curve("sdft", 0, (0, 0.2), (9, 1.0)),
    ]
    sft, sdft = sequence_curves(arms)
    assert (sft.method, sft.task, sft.steps, sdft.steps) == ("sft", "a", [0, 5, 9], [0, 9])
    assert sft.values == [pytest.approx([0.0, 0.25, 0.5])]
    assert sdft.values == [pytest.approx([0.0, 1.0])]


def test_a_seed_that_stopped_early_stays_where_it_was():
    arms = [with_curve("sdft", 0, (0, 0.2), (5, 0.6), (10, 1.0)), with_curve("sdft", 1, (0, 0.2), (4, 1.0))]
    (found,) = sequence_curves(arms)
    assert found.steps == [0, 4, 5, 10]
    assert found.values == [pytest.approx([0, 0, 0.5, 1]), pytest.approx([0, 1, 1, 1])]


def test_without_evaluations_during_training_there_are_no_curves():
    assert sequence_curves([with_curve("sdft", 0, (5, None))]) == []
    assert sequence_curves([]) == []


def test_a_finished_run_leaves_everything_and_two_pictures(finished_sequence):
    run = finished_sequence / "run"
    report = json.loads((run / "continual.json").read_text())
    assert report["tasks"] == TASKS
    assert [arm["name"] for arm in report["arms"]] == ["sdft-lr1e-3-seed42", "joint-lr1e-3-seed42", "oracle"]
    sdft, joint, oracle = report["arms"]
    assert [row["step"] for row in sdft["curve"]] == [0, 1, 1, 2, 3]
    assert [row["step"] for row in joint["curve"]] == [0, 1, 2, 3]
    assert all(row["tasks"].keys() >= set(TASKS) for row in sdft["curve"] + joint["curve"])
    assert (len(sdft["accuracy"]), len(joint["accuracy"]), len(oracle["accuracy"])) == (3, 2, 3)
    assert sdft["suites"].keys() == {"more"}
    assert report["base"]["student"].keys() == {*TASKS, "validation/one", "validation/two", "more", "prior"}
    assert "jax" in report["hardware"]
    for name in ("pareto.png", "accuracy.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def again(finished_sequence, half_directory, tmp_path):
    """The configuration of a copy of the finished run."""
    shutil.copytree(finished_sequence / "run", tmp_path / "run")
    settings = sequence_settings(finished_sequence)
    return write_config(tmp_path / "config.yaml", half_directory, tmp_path / "run", *settings)


CHANGED = {
    "teacher.rate=0.5": "holds another run, whose teacher.rate is 0.01 where this one has 0.5: give another",
    "train.seed=1": "whose train.seed is 42 where this one has 1: give another output=, or delete",
    "continual.suites=[]": "holds another run, whose continual.suites is [{",
}


@pytest.mark.parametrize("override", CHANGED)
def test_changed_settings_in_the_same_output_are_refused(again, override, tmp_path, capsys):
    before = content_of(tmp_path / "run")
    assert cli.main(["continual", again, override]) == 2
    errors = capsys.readouterr().err
    assert CHANGED[override] in errors
    assert errors.count("\n") == 1
    assert content_of(tmp_path / "run") == before


def test_learning_rates_seeds_and_methods_may_be_added(again, monkeypatch):
    """That added methods train is in the finished run itself; here new arms only say that they would."""
    run_arm, old, new = continual.run_arm, [], []

    def known_only(plan, arm, sweep):
        if (Path(plan.config.output) / arm.name).is_dir():
            old.append(arm.name)
            return run_arm(plan, arm, sweep)
        new.append(arm.name)
        return run_arm(plan, dataclasses.replace(arm, learning_rate=1e-3, seed=42), sweep)

    monkeypatch.setattr(continual, "run_arm", known_only)
    monkeypatch.setattr("sdft_jax.continual.arms.train", None)
    added = {"methods": "[sdft,oracle]", "learning_rates": "[1e-3,1e-2]", "seeds": "[42,7]"}
    assert cli.main(["continual", again, *(f"continual.{key}={value}" for key, value in added.items())]) == 0
    assert old == ["sdft-lr1e-3-seed42", "oracle"]
    assert new == ["sdft-lr1e-3-seed7", "sdft-lr1e-2-seed42", "sdft-lr1e-2-seed7"]


MISTAKES = {
    "continual.stages=[]": "continual.stages is empty: list the stages in the configuration",
    "continual.stages=[{name: a, data: {path: nowhere.jsonl}}]": "nowhere.jsonl does not exist: give a file",
    "continual.stages=[{name: a, data: {limit: 9}, eval: {path: nowhere.jsonl}}]": "nowhere.jsonl does not",
    "continual.methods=[sdft,reinvoke]": "train.method=reinvoke distills the base model on prompts",
    "continual.methods=[sdtf]": "continual.methods.0='sdtf': input should be 'sdft', 'sft'",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_is_written(override, half_directory, tmp_path, capsys):
    config = write_config(
        tmp_path / "config.yaml", half_directory, tmp_path / "run", *sequence_settings(tmp_path)
    )
    assert cli.main(["continual", config, override]) == 2
    errors = capsys.readouterr().err
    assert MISTAKES[override] in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_output_in_a_bucket_is_refused(half_directory, tmp_path, capsys):
    config = write_config(tmp_path / "run.yaml", half_directory, tmp_path / "unused")
    assert cli.main(["continual", config, "output=gs://bucket/runs/b"]) == 2
    errors = capsys.readouterr().err
    assert "output=gs://bucket/runs/b is a bucket, and stages pass models on through a local disk" in errors
    assert not Path("gs:").exists()
