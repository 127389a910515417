"""`sdft continual`: its files, resumption with additional arms, and error messages."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from runs import content_of, sequence_settings, write_config
from sdft_jax import cli
from sdft_jax.commands import continual

pytestmark = pytest.mark.usefixtures("shared_compilations")

TASKS = ["one", "two"]


def test_files_of_a_finished_run(finished_sequence):
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
def config(finished_sequence, half_directory, tmp_path):
    """The configuration file of a copy of the finished run."""
    shutil.copytree(finished_sequence / "run", tmp_path / "run")
    settings = sequence_settings(finished_sequence)
    return write_config(tmp_path / "config.yaml", half_directory, tmp_path / "run", *settings)


CHANGED = {
    "teacher.rate=0.5": "holds another run: its teacher.rate is 0.01, and this one's is 0.5: give another",
    "train.seed=1": "its train.seed is 42, and this one's is 1: give another output=, or delete",
    "continual.suites=[]": "holds another run: its continual.suites is [{",
}


@pytest.mark.parametrize("override", CHANGED)
def test_other_settings_in_the_same_output_are_an_error(config, override, tmp_path, capsys):
    before = content_of(tmp_path / "run")
    assert cli.main(["continual", config, override]) == 2
    errors = capsys.readouterr().err
    assert CHANGED[override] in errors
    assert errors.count("\n") == 1
    assert content_of(tmp_path / "run") == before


def test_methods_learning_rates_and_seeds_may_be_added(config, tmp_path, monkeypatch, capsys):
    """New arms are not trained here, but have the results of a finished one; `finished_sequence` trains."""
    run_arm, old, new = continual.run_arm, [], []

    def finished_only(plan, arm, sweep):
        if (Path(plan.config.output) / arm.name).is_dir():
            old.append(arm.name)
            return run_arm(plan, arm, sweep)
        new.append(arm.name)
        return run_arm(plan, dataclasses.replace(arm, learning_rate=1e-3, seed=42), sweep)

    monkeypatch.setattr(continual, "run_arm", finished_only)
    monkeypatch.setattr("sdft_jax.continual.arms.train", None)
    added = {"methods": "[sdft,oracle]", "learning_rates": "[1e-3,1e-2]", "seeds": "[42,7]"}
    assert cli.main(["continual", config, *(f"continual.{key}={value}" for key, value in added.items())]) == 0
    assert old == ["sdft-lr1e-3-seed42", "oracle"]
    assert new == ["sdft-lr1e-3-seed7", "sdft-lr1e-2-seed42", "sdft-lr1e-2-seed7"]
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if " of 5)" in line] == [
        f"{name} ({number} of 5)"
        for number, name in enumerate(["sdft-lr1e-3-seed42", *new, "oracle"], start=1)
    ]
    assert "Accuracy after the last stage, greedy" in lines
    assert sum(line.startswith("sdft    1e-") for line in lines) == 4
    assert f"all results               {tmp_path / 'run' / 'continual.json'}" in lines


ERRORS = {
    "continual.stages=[]": "continual.stages is empty: list the stages in the configuration",
    "continual.stages=[{name: a, data: {path: nowhere.jsonl}}]": "nowhere.jsonl does not exist: give a file",
    "continual.stages=[{name: a, data: {limit: 9}, eval: {path: nowhere.jsonl}}]": "nowhere.jsonl does not",
    "continual.methods=[sdft,reinvoke]": "train.method=reinvoke distills the base model on general prompts",
    "continual.methods=[sdtf]": "continual.methods.0='sdtf': input should be 'sdft', 'sft'",
}


@pytest.mark.parametrize("override", ERRORS)
def test_error_is_one_line_before_any_file_is_written(override, half_directory, tmp_path, capsys):
    config = write_config(
        tmp_path / "config.yaml", half_directory, tmp_path / "run", *sequence_settings(tmp_path)
    )
    assert cli.main(["continual", config, override]) == 2
    errors = capsys.readouterr().err
    assert ERRORS[override] in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_output_in_a_bucket_is_refused(half_directory, tmp_path, capsys):
    config = write_config(tmp_path / "run.yaml", half_directory, tmp_path / "unused")
    assert cli.main(["continual", config, "output=gs://bucket/runs/b"]) == 2
    errors = capsys.readouterr().err
    assert "output=gs://bucket/runs/b is a bucket, and a stage reads its model from a local disk" in errors
    assert not Path("gs:").exists()
