"""Tests of trials: the key depends on the settings only, results are stored, interrupted trials resume."""

import json
import os

import pytest

from labs import tiny_arm, tiny_world
from sdft_jax.continual import arms
from sdft_jax.studies.lab import trials
from sdft_jax.studies.lab.trials import Trial, perform, stored

pytestmark = pytest.mark.usefixtures("shared_compilations")

SETTINGS = {"config": {"train": {"steps": 2}, "stages": [{"name": "blax"}]}, "learning_rate": 1e-4, "seed": 0}
TRIAL = Trial("arm", SETTINGS, "title")


@pytest.mark.parametrize(
    "same",
    [
        Trial("arm", dict(reversed(SETTINGS.items())), "title"),
        Trial("arm", SETTINGS, "another title"),
        Trial("arm", SETTINGS | {"config": {"stages": ({"name": "blax"},), "train": {"steps": 2}}}, "title"),
        Trial("arm", json.loads(json.dumps(SETTINGS)), "title"),
    ],
)
def test_equal_work_has_the_same_key(same):
    assert same.key == TRIAL.key


@pytest.mark.parametrize(
    "other",
    [
        Trial("base", SETTINGS, "title"),
        Trial("arm", SETTINGS | {"seed": 1}, "title"),
        Trial("arm", SETTINGS | {"learning_rate": 1.1e-4}, "title"),
        Trial("arm", SETTINGS | {"pass_at_k": {"n": 4}}, "title"),
        Trial("arm", SETTINGS | {"config": {"train": {"steps": 3}, "stages": [{"name": "blax"}]}}, "title"),
        Trial("arm", SETTINGS | {"config": {"train": {"steps": 2}, "stages": [{"name": "drib"}]}}, "title"),
    ],
)
def test_different_work_has_a_different_key(other):
    assert other.key != TRIAL.key


def test_key_is_stable_across_processes():
    """The key is from the SHA-256 of ["cost", {"a": [1, 2.5], "b": null}]."""
    assert Trial("cost", {"a": [1, 2.5], "b": None}, "").key == "f2171d393fc7c6f2"


def test_trial_stores_its_data_its_log_and_its_result(tiny_directory, tmp_path, capfd):
    trial = tiny_arm(tiny_world(tiny_directory))
    assert stored(trial, tmp_path) is None
    perform(trial, tmp_path)
    directory = tmp_path / trial.key
    assert {path.name for path in directory.iterdir()} == {"trial.json", "log.txt", "result.json"}
    data = json.loads((directory / "trial.json").read_text())
    assert Trial(**data).key == trial.key
    assert data["title"] == trial.title == "tiny blax sft lr 0.01 seed 0"
    result = stored(trial, tmp_path)
    assert result["measured"][0]["blax"].keys() >= {"accuracy", "length", "kl_to_base", "correct"}
    out, err = capfd.readouterr()
    assert out == err == ""  # the output is in the log
    again = stored(Trial(trial.work, trial.settings, "renamed"), tmp_path)
    assert again == result
    assert stored(tiny_arm(tiny_world(tiny_directory), seed=1), tmp_path) is None


def test_interrupted_trial_has_no_result_and_resumes_at_its_stage(tiny_directory, tmp_path, monkeypatch):
    trial = tiny_arm(tiny_world(tiny_directory), skills=("blax", "drib"))
    perform(trial, tmp_path / "whole")
    trained = []
    train = arms.train

    def interrupted(config, *args, **kwargs):
        trained.append(config.output.rpartition("/")[2])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(config, *args, **kwargs)

    monkeypatch.setattr(arms, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        perform(trial, tmp_path / "cut")
    assert stored(trial, tmp_path / "cut") is None
    assert (tmp_path / "cut" / trial.key / "run").is_dir()

    perform(trial, tmp_path / "cut")
    assert trained == ["1-blax", "2-drib", "2-drib"]
    assert stored(trial, tmp_path / "cut") == stored(trial, tmp_path / "whole")
    assert not (tmp_path / "cut" / trial.key / "run").exists()


def test_failed_write_leaves_no_partial_result(tmp_path, monkeypatch):
    unserializable = {"a": {1, 2}}
    monkeypatch.setattr(trials, "_work", lambda name: lambda settings, output: unserializable)
    with pytest.raises(TypeError):
        perform(TRIAL, tmp_path)
    assert stored(TRIAL, tmp_path) is None


def test_trial_is_performed_again_if_its_result_is_damaged_or_its_log_is_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "_work", lambda name: lambda settings, directory: {"result": 1})
    directory = tmp_path / TRIAL.key
    directory.mkdir()
    for name in ("trial.json", "log.txt", "result.json"):
        os.mkfifo(directory / name)
    assert stored(TRIAL, tmp_path) is None
    perform(TRIAL, tmp_path)
    assert stored(TRIAL, tmp_path) == {"result": 1}
    (directory / "result.json").write_text('{"result": ')
    assert stored(TRIAL, tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 10_000])
def test_damaged_result_counts_as_missing(tmp_path, content):
    file = tmp_path / TRIAL.key / "result.json"
    file.parent.mkdir()
    file.write_bytes(content)
    assert stored(TRIAL, tmp_path) is None
