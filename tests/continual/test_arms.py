"""Continual runs: stages in order, measurements from the base model, and bit-identical resumption."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from runs import config_of, content_of, read, sequence_settings, step_names
from sdft_jax.config import method_named
from sdft_jax.continual import arms
from sdft_jax.continual.arms import make_plan, measure_base, run_arm
from sdft_jax.continual.stages import Arm
from sdft_jax.evaluation.scoring import Evaluation
from sdft_jax.models import distance, load_model
from sdft_jax.models.hf.safetensors_io import read_header
from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.training import checkpoint, loop

pytestmark = pytest.mark.usefixtures("shared_compilations")

SDFT = "sdft-lr1e-3-seed42"
JOINT = "joint-lr1e-3-seed42"
SDFT_METHOD = method_named("sdft")


def arm(method: str) -> Arm:
    return Arm(method_named(method), 1e-3, 42)


def measured(run: Path, *parts: str) -> dict:
    return json.loads(run.joinpath(*parts, "measured.json").read_text())


def state_of(stage: Path, step: int, part: str) -> dict[str, np.ndarray]:
    """Return one field of a saved state, as arrays by path."""
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


def test_second_stage_and_its_teacher_start_from_the_final_weights_of_the_first(finished_sequence):
    first, second = (finished_sequence / "run" / SDFT / name for name in ("1-one", "2-two"))
    end = state_of(first, 1, "params")
    assert {leaf.dtype for leaf in end.values()} == {np.dtype(np.float32)}
    assert_equal(state_of(second, 0, "params"), end)
    assert_equal(state_of(second, 0, "teacher"), end)
    assert_equal(params_of(first / "handoff"), end)
    exported = params_of(first / "model")
    assert any((exported[name] != end[name]).any() for name in end), "the export is bfloat16, as the source"
    files = [read_header(stage / "model" / "model.safetensors").values() for stage in (first, second)]
    assert {x.dtype.name for file in files for x in file} == {"bfloat16"}


def test_with_adapters_one_adapter_of_the_first_base_learns_all_stages(half_directory, tmp_path):
    """Nothing is rounded between stages, although the base is bfloat16, and the KL is from the first base."""
    settings = (*sequence_settings(tmp_path), "lora.rank=4", "optimizer.learning_rate=1e-2")
    plan = make_plan(
        config_of(half_directory, tmp_path / "run", *settings), [SDFT_METHOD], process_reporter()
    )
    run_arm(plan, Arm(SDFT_METHOD, 1e-2, 42), sweep=False)
    first, second = (tmp_path / "run" / "sdft-lr1e-2-seed42" / name for name in ("1-one", "2-two"))
    end = state_of(first, 1, "params")
    assert {name.rpartition("_lora_")[2] for name in end} == {"a']", "b']"}
    assert_equal(state_of(second, 0, "params"), end)
    assert_equal(state_of(second, 0, "teacher"), end)
    assert (first / "handoff" / "adapter_model.safetensors").exists()
    assert not (first / "handoff" / "model.safetensors").exists()
    before, after = (read(stage / "evaluations.jsonl") for stage in (second, first))
    assert (before[0]["kl_to_base"], before[0]["distance"]) == (
        after[-1]["kl_to_base"],
        after[-1]["distance"],
    )
    assert before[0]["kl_to_base"] > 0
    results = measured(tmp_path / "run", "sdft-lr1e-2-seed42", "2-two")
    assert results["prior"]["kl_to_base"] == pytest.approx(before[-1]["kl_to_base"], rel=1e-6)


def test_distances_are_from_the_original_base_in_every_stage(finished_sequence, half_directory):
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
        results = measured(run, SDFT, stage)
        assert results["prior"]["kl_to_base"] == pytest.approx(rows[-1]["kl_to_base"], rel=1e-6)
        assert results[task]["kl_to_base"] == pytest.approx(rows[-1]["kl_to_base_new"], rel=1e-6)


def test_evaluations_of_a_stage_include_the_other_tasks(finished_sequence):
    for stage, other in (("1-one", "two"), ("2-two", "one")):
        rows = read(finished_sequence / "run" / SDFT / stage / "evaluations.jsonl")
        assert all(row.keys() >= {"accuracy", "validation", "prior", f"accuracy/{other}"} for row in rows)


def test_tasks_validation_rows_suites_and_prior_skills_are_measured_after_each_stage(finished_sequence):
    run = finished_sequence / "run"
    base = json.loads((run / "base.json").read_text())
    names = {"one", "two", "validation/one", "validation/two", "more", "prior"}
    rows = {name: 8 for name in names} | {"more": 4}
    for results in (base["student"], measured(run, SDFT, "1-one"), measured(run, SDFT, "2-two")):
        assert {name: len(result["completions"]) for name, result in results.items()} == rows
        for result in results.values():
            assert result["accuracy"] == sum(result["correct"]) / len(result["correct"])
    assert base["teacher"].keys() == {"one", "two"}, "the suite has eval.teacher=false"


def test_joint_arm_trains_once_on_all_rows_for_the_sum_of_the_steps(finished_sequence, half_directory):
    run = finished_sequence / "run"
    assert [path.name for path in (run / JOINT).iterdir()] == ["1-joint"]
    assert step_names(run / JOINT / "1-joint")[-1] == 3
    assert not (run / JOINT / "1-joint" / "handoff").exists()
    plan = plan_of(half_directory, finished_sequence, finished_sequence / "unused", ["joint"])
    calls = []

    def train(config, inputs, **_):
        calls.append((config.train.method, config.train.steps, inputs.train))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "train", train)
        with pytest.raises(KeyboardInterrupt):
            run_arm(plan, arm("joint"), sweep=False)
    ((method, steps, rows),) = calls
    assert (method, steps) == ("joint", 3)
    assert [row.row for row in rows] == list(range(32))
    of_stages = [row for inputs in plan.inputs["joint"] for row in inputs.train]
    assert [row.prompt.tolist() for row in rows] == [row.prompt.tolist() for row in of_stages]


def test_oracle_does_not_train_and_answers_with_the_demonstration(finished_sequence):
    run = finished_sequence / "run"
    assert [path.name for path in (run / "oracle").iterdir()] == ["measured.json"]
    base = json.loads((run / "base.json").read_text())
    rows = measured(run, "oracle")
    assert len(rows) == 2
    assert rows[0] == rows[1] == base["student"] | base["teacher"]
    assert base["teacher"]["one"]["completions"] != base["student"]["one"]["completions"]


def test_oracle_has_the_accuracy_of_the_teacher(finished_sequence, half_directory, tmp_path, monkeypatch):
    plan = plan_of(half_directory, finished_sequence, tmp_path, ["oracle"])

    def evaluate(*_, teacher, **__):
        return Evaluation((True, teacher, teacher, teacher), ("",) * 4, (1,) * 4, None)

    monkeypatch.setattr(arms, "evaluate", evaluate)
    first, second = run_arm(plan, arm("oracle"), sweep=False)
    assert first == second
    assert {name: result["accuracy"] for name, result in first.items()} == {
        "one": 1.0,
        "two": 1.0,
        "validation/one": 0.25,
        "validation/two": 0.25,
        "more": 0.25,
        "prior": 0.25,
    }


def test_adding_arms_does_not_change_finished_ones(finished_sequence):
    before, after = (content_of(finished_sequence / name / SDFT) for name in ("alone", "run"))
    assert before == after


def plan_of(model, rows: Path, output: Path, methods=("sdft",)):
    config = config_of(model, output, *sequence_settings(rows))
    return make_plan(config, [method_named(name) for name in methods], process_reporter())


def test_run_interrupted_three_times_is_bit_identical(
    finished_sequence, half_directory, tmp_path, monkeypatch
):
    plan = plan_of(half_directory, finished_sequence, tmp_path / "run")

    def interrupt(module, name, condition):
        """Make a function raise KeyboardInterrupt at the first call that satisfies the condition."""
        function = getattr(module, name)

        def interrupted(*arguments, **options):
            if condition(*arguments):
                monkeypatch.setattr(module, name, function)
                raise KeyboardInterrupt
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, interrupted)

    def start():
        measure_base(plan)
        return run_arm(plan, arm("sdft"), sweep=False)

    def in_stage_two(manager, step, *_):
        return step == 2 and "2-two" in str(manager.directory)

    directory = tmp_path / "run" / SDFT
    interruptions = [  # with (measured, checkpoints) of each stage at that time
        # The first stage is trained, and its model is not written.
        ((arms, "save_pretrained", lambda *_: True), {"1-one": (False, [0, 1])}),
        ((checkpoint, "save", in_stage_two), {"1-one": (True, [0, 1]), "2-two": (False, [0, 1])}),
        # All stages are trained, and the last one is not measured.
        ((arms, "measure", lambda *_: True), {"1-one": (True, [0, 1]), "2-two": (False, [0, 1, 2])}),
    ]
    measure_base(plan)
    for interruption, expected in interruptions:
        interrupt(*interruption)
        with pytest.raises(KeyboardInterrupt):
            start()
        stages = sorted(directory.iterdir())
        assert {x.name: ((x / "measured.json").exists(), step_names(x)) for x in stages} == expected
    start()
    assert_same_arm(finished_sequence / "run" / SDFT, directory)
    base, expected = (run / "base.json" for run in (tmp_path / "run", finished_sequence / "run"))
    assert base.read_text() == expected.read_text()


def assert_same_arm(one: Path, two: Path) -> None:
    for stage, last in (("1-one", 1), ("2-two", 2)):
        left, right = one / stage, two / stage
        for part in ("model", "handoff"):
            assert content_of(left / part) == content_of(right / part), (stage, part)
        for name in ("evaluations.jsonl", "metrics.jsonl"):
            assert read(left / name) == read(right / name), (stage, name)
        assert (left / "measured.json").read_text() == (right / "measured.json").read_text()
        for part in ("params", "teacher", "opt_state", "key"):
            assert_equal(state_of(left, last, part), state_of(right, last, part))


def test_finished_work_is_not_repeated(finished_sequence, half_directory, tmp_path, monkeypatch):
    output = shutil.copytree(finished_sequence / "run", tmp_path / "run")
    plan = plan_of(half_directory, finished_sequence, output)
    monkeypatch.setattr(arms, "train", None)
    monkeypatch.setattr(arms, "evaluate", None)
    monkeypatch.setattr(loop, "train", None)
    results = run_arm(plan, arm("sdft"), sweep=False)
    assert results == [measured(output, SDFT, "1-one"), measured(output, SDFT, "2-two")]
    assert measure_base(plan) == json.loads((output / "base.json").read_text())


def test_stage_without_evaluations_is_measured_only_at_its_end(
    finished_sequence, half_directory, tmp_path, monkeypatch
):
    plan = plan_of(half_directory, finished_sequence, tmp_path)
    stage = plan.stages[0]
    train_config = dataclasses.replace(stage.config.train, eval_every=0, choose="last")
    config = dataclasses.replace(stage.config, train=train_config, output=str(tmp_path))
    calls = []

    def train(config, inputs, *, reporter, watch):
        calls.append((inputs.new, inputs.validation, inputs.prior, watch))
        raise KeyboardInterrupt

    monkeypatch.setattr(arms, "train", train)
    with pytest.raises(KeyboardInterrupt):
        arms._run_stage(plan, stage, config, plan.inputs["sdft"][0], None)
    assert calls == [(None, None, None, None)]


def test_signal_ends_the_measurements_of_other_tasks(finished_sequence, half_directory, tmp_path):
    class Requested(Exception):
        pass

    def end():
        raise Requested

    plan = plan_of(half_directory, finished_sequence, tmp_path)
    watch = arms._other_tasks(plan, plan.stages[0])
    model, params = load_model(half_directory)
    with pytest.raises(Requested):
        watch(model, params, dataclasses.replace(plan.reporter, before_item=end))
