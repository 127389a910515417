"""A model goes through stages: killed and started again it ends the same; it is measured from its base."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from runs import config_of, content_of, read, sequence_settings, step_names
from sdft_jax.continual import arms
from sdft_jax.continual.arms import make_plan, measure_base, run_arm
from sdft_jax.continual.stages import Arm
from sdft_jax.evaluation.scoring import Evaluation
from sdft_jax.models import distance, load_model
from sdft_jax.training import checkpoint, loop

pytestmark = pytest.mark.usefixtures("shared_compilations")

SDFT = "sdft-lr1e-3-seed42"
JOINT = "joint-lr1e-3-seed42"


def measured(run: Path, *place: str) -> dict:
    return json.loads(run.joinpath(*place, "measured.json").read_text())


def state_of(stage: Path, step: int, part: str) -> dict[str, np.ndarray]:
    """One field of the saved state, leaf by leaf."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(stage / "checkpoints" / str(step) / "state")[part]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def params_of(directory: Path) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(load_model(directory)[1])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert (left[name].dtype, left[name].tobytes()) == (right[name].dtype, right[name].tobytes()), name


def test_the_second_stage_starts_where_the_first_ended_and_so_does_its_teacher(finished_sequence):
    first, second = (finished_sequence / "run" / SDFT / name for name in ("1-one", "2-two"))
    end = state_of(first, 1, "params")
    assert {leaf.dtype for leaf in end.values()} == {np.dtype(np.float32)}
    assert_equal(state_of(second, 0, "params"), end)
    assert_equal(state_of(second, 0, "teacher"), end)
    assert_equal(params_of(first / "handoff"), end)
    exported = params_of(first / "model")
    assert any((exported[name] != end[name]).any() for name in end), "it was rounded to the source's bfloat16"


def test_distances_are_measured_from_the_original_base_in_every_stage(finished_sequence, half_directory):
    run = finished_sequence / "run"
    first, second = (read(run / SDFT / name / "evaluations.jsonl") for name in ("1-one", "2-two"))
    assert [row["step"] for row in first] == [0, 1]
    assert [row["step"] for row in second] == [0, 1, 2]
    assert "distance" not in first[0]
    assert second[0]["distance"] == first[1]["distance"] > 0
    assert second[0]["kl_to_base"] == first[1]["kl_to_base"] > 0
    model, end = load_model(run / SDFT / "1-one" / "handoff")
    assert second[0]["distance"] == pytest.approx(distance(model, end, half_directory))
    for number, (stage, rows) in enumerate((("1-one", first), ("2-two", second))):
        task = ("one", "two")[number]
        found = measured(run, SDFT, stage)
        assert found["prior"]["kl_to_base"] == pytest.approx(rows[-1]["kl_to_base"], rel=1e-6)
        assert found[task]["kl_to_base"] == pytest.approx(rows[-1]["kl_to_base_new"], rel=1e-6)


def test_every_stage_is_watched_on_the_other_tasks(finished_sequence):
    for stage, other in (("1-one", "two"), ("2-two", "one")):
        rows = read(finished_sequence / "run" / SDFT / stage / "evaluations.jsonl")
        assert all(row.keys() >= {"accuracy", "validation", "prior", f"accuracy/{other}"} for row in rows)


def test_tasks_validation_suites_and_prior_skills_are_measured_after_each_stage(finished_sequence):
    run = finished_sequence / "run"
    base = json.loads((run / "base.json").read_text())
    names = {"one", "two", "validation/one", "validation/two", "more", "prior"}
    rows = {name: 8 for name in names} | {"more": 4}
    for found in (base["student"], measured(run, SDFT, "1-one"), measured(run, SDFT, "2-two")):
        assert {name: len(found[name]["completions"]) for name in found} == rows
        for part in found.values():
            assert part["accuracy"] == sum(part["correct"]) / len(part["correct"])
    assert base["teacher"].keys() == {"one", "two"}, "a suite that has no demonstrations is not shown any"


def test_joint_trains_once_on_all_rows_for_the_sum_of_the_steps(finished_sequence, half_directory):
    run = finished_sequence / "run"
    assert [path.name for path in (run / JOINT).iterdir()] == ["1-joint"]
    assert step_names(run / JOINT / "1-joint")[-1] == 3
    assert not (run / JOINT / "1-joint" / "handoff").exists()
    plan = plan_of(half_directory, finished_sequence, finished_sequence / "unused", ["joint"])
    seen = []

    def train(config, prepared, **_):
        seen.append((config.train.method, config.train.steps, prepared.train))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "train", train)
        with pytest.raises(KeyboardInterrupt):
            run_arm(plan, Arm("joint", 1e-3, 42), sweep=False)
    ((method, steps, rows),) = seen
    assert (method, steps) == ("joint", 3)
    assert [row.row for row in rows] == list(range(32))
    single = [row for tokens in plan.prepared["joint"] for row in tokens.train]
    assert [row.prompt.tolist() for row in rows] == [row.prompt.tolist() for row in single]


def test_the_oracle_trains_nothing_and_answers_with_the_demonstration(finished_sequence):
    run = finished_sequence / "run"
    assert [path.name for path in (run / "oracle").iterdir()] == ["measured.json"]
    base = json.loads((run / "base.json").read_text())
    rows = measured(run, "oracle")
    assert len(rows) == 2
    assert rows[0] == rows[1] == base["student"] | base["teacher"]
    assert base["teacher"]["one"]["completions"] != base["student"]["one"]["completions"]


def test_the_oracle_has_the_accuracy_of_the_teacher(finished_sequence, half_directory, tmp_path, monkeypatch):
    plan = plan_of(half_directory, finished_sequence, tmp_path, ["oracle"])

    def evaluate(*_, teacher, **__):
        return Evaluation((True, teacher, teacher, teacher), ("",) * 4, (1,) * 4, None)

    monkeypatch.setattr(arms, "evaluate", evaluate)
    first, second = run_arm(plan, Arm("oracle", 1e-3, 42), sweep=False)
    assert first == second
    assert {name: part["accuracy"] for name, part in first.items()} == {
        "one": 1.0,
        "two": 1.0,
        "validation/one": 0.25,
        "validation/two": 0.25,
        "more": 0.25,
        "prior": 0.25,
    }


def test_arms_beside_each_other_do_not_disturb_each_other(finished_sequence):
    before, after = (content_of(finished_sequence / place / SDFT) for place in ("alone", "run"))
    assert before == after


def plan_of(model, rows: Path, output: Path, methods=("sdft",)):
    config = config_of(model, output, *sequence_settings(rows))
    return make_plan(config, list(methods), active=True)


def test_killed_again_and_again_it_ends_bit_identical(
    finished_sequence, half_directory, tmp_path, monkeypatch
):
    plan = plan_of(half_directory, finished_sequence, tmp_path / "run")

    def dying(module, name, when):
        """Until it has died once, the function dies where it is told to."""
        function = getattr(module, name)

        def die(*arguments, **options):
            if when(*arguments):
                monkeypatch.setattr(module, name, function)
                raise KeyboardInterrupt
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, die)

    def again():
        measure_base(plan)
        return run_arm(plan, Arm("sdft", 1e-3, 42), sweep=False)

    def in_stage_two(manager, step, *_):
        return step == 2 and "2-two" in str(manager.directory)

    places = [
        (arms, "save_pretrained", lambda *_: True),  # the first stage is trained, and not handed over
        (checkpoint, "save", in_stage_two),
        (arms, "measure", lambda *_: True),  # all is trained, and not measured
    ]
    directory = tmp_path / "run" / SDFT
    left = [{"1-one": (False, [0, 1])}, {"1-one": (True, [0, 1]), "2-two": (False, [0, 1])}]
    left.append({"1-one": (True, [0, 1]), "2-two": (False, [0, 1, 2])})
    measure_base(plan)
    for place, expected in zip(places, left, strict=True):
        dying(*place)
        with pytest.raises(KeyboardInterrupt):
            again()
        stages = sorted(directory.iterdir())
        assert {x.name: ((x / "measured.json").exists(), step_names(x)) for x in stages} == expected
    again()
    assert_same(finished_sequence / "run" / SDFT, directory)
    assert measured_base(tmp_path / "run") == measured_base(finished_sequence / "run")


def measured_base(run: Path) -> str:
    return (run / "base.json").read_text()


def assert_same(one: Path, two: Path) -> None:
    for stage, last in (("1-one", 1), ("2-two", 2)):
        left, right = one / stage, two / stage
        for part in ("model", "handoff"):
            assert content_of(left / part) == content_of(right / part), (stage, part)
        for name in ("evaluations.jsonl", "metrics.jsonl"):
            assert read(left / name) == read(right / name), (stage, name)
        assert (left / "measured.json").read_text() == (right / "measured.json").read_text()
        for part in ("params", "teacher", "opt_state", "key"):
            assert_equal(state_of(left, last, part), state_of(right, last, part))


def test_what_is_done_is_not_done_again(finished_sequence, half_directory, tmp_path, monkeypatch):
    output = shutil.copytree(finished_sequence / "run", tmp_path / "run")
    plan = plan_of(half_directory, finished_sequence, output)
    monkeypatch.setattr(arms, "train", None)
    monkeypatch.setattr(arms, "evaluate", None)
    monkeypatch.setattr(loop, "train", None)
    found = run_arm(plan, Arm("sdft", 1e-3, 42), sweep=False)
    assert found == [measured(output, SDFT, "1-one"), measured(output, SDFT, "2-two")]
    assert measure_base(plan) == json.loads((output / "base.json").read_text())


def test_without_evaluations_a_stage_is_measured_once(
    finished_sequence, half_directory, tmp_path, monkeypatch
):
    plan = plan_of(half_directory, finished_sequence, tmp_path)
    stage = plan.stages[0]
    plain = dataclasses.replace(stage.config.train, eval_every=0, choose="last")
    config = dataclasses.replace(stage.config, train=plain, output=str(tmp_path))
    seen = []

    def train(config, prepared, *, active, watch):
        seen.append((prepared.new, prepared.validation, prepared.prior, watch))
        raise KeyboardInterrupt

    monkeypatch.setattr(arms, "train", train)
    with pytest.raises(KeyboardInterrupt):
        arms._run_stage(plan, stage, config, plan.prepared["sdft"][0], None)
    assert seen == [(None, None, None, None)]
