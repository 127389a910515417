"""A run ends the same however often it is killed; it stops where it must, and keeps what it should."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from runs import config_of, read, start, step_names, write_config

import sdft_jax.training as train_module
from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.evaluation import Evaluation
from sdft_jax.prepare import prepare
from sdft_jax.training import train

pytestmark = pytest.mark.usefixtures("shared_compilations")

PLAIN = ("eval.path=null", "eval.prior=null", "train.eval_every=0", "train.rollouts_every=0")
"""Steps alone."""


def run(model, output, *overrides):
    config = config_of(model, output, *overrides)
    return train(config, prepare(config, active=False))


def content(output: Path) -> dict:
    """Everything that a run leaves, but for times."""
    last = max(step_names(output))
    checkpoint = output / "checkpoints" / str(last)
    with ocp.PyTreeCheckpointer() as reader:
        state = jax.tree_util.tree_leaves_with_path(reader.restore(checkpoint / "state"))
    return {
        "steps": step_names(output),
        "model": (output / "model" / "model.safetensors").read_bytes(),
        "metrics": read(output / "metrics.jsonl"),
        "evaluations": read(output / "evaluations.jsonl"),
        "rollouts": {path.name: path.read_bytes() for path in (output / "rollouts").iterdir()},
        "state": {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in state},
        "data": next(checkpoint.glob("data/process*")).read_bytes(),
        "meta": (checkpoint / "meta" / "metadata").read_bytes(),
    }


def assert_same(one: Path, two: Path) -> None:
    left, right = content(one), content(two)
    for part in left:
        assert left[part] == right[part], part
    assert sorted(path.name for path in two.iterdir() if path.name.startswith(".")) == []


DYING = """
import os, signal, sys
from pathlib import Path
from sdft_jax import checkpoint, cli, report
from sdft_jax.models import writing

place, output = sys.argv[1], Path(sys.argv[2])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, last_words):
    def wrapped(*arguments):
        last_words(*arguments)
        return function(*arguments)
    return wrapped

def half_a_line(sinks, step, metrics):
    if step == 4:  # that of the evaluation at step 3 is already written
        with (output / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')
        die()

def half_a_checkpoint(directory):
    if list(directory.glob("4.*")):
        die()

if place == "metrics":
    report._write_all = dying(report._write_all, half_a_line)
if place == "checkpoint":
    checkpoint.seal = dying(checkpoint.seal, half_a_checkpoint)
if place == "export":
    writing._write_index = dying(writing._write_index, lambda files, directory: die())
sys.exit(cli.main(sys.argv[3:]))
"""
PLACES = {
    "metrics": "in the middle of a line of metrics, after an evaluation that no checkpoint has seen",
    "checkpoint": "while a checkpoint is being written",
    "export": "while the model is being exported",
}


def test_killed_again_and_again_it_ends_bit_identical(finished, tiny_directory, tmp_path, caches):
    output = tmp_path / "run"
    command = ["train", write_config(tmp_path / "run.yaml", tiny_directory, output)]
    process = start(["-m", "sdft_jax.cli", *command], caches)
    wait_for(output / "metrics.jsonl", process)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL, "the kill came too late"
    for place in PLACES:
        code, errors = ended(start(["-c", DYING, place, str(output), *command], caches))
        assert code == -signal.SIGKILL, errors
        if place == "checkpoint":
            assert list((output / "checkpoints").glob("4.*"))
    code, errors = ended(start(["-m", "sdft_jax.cli", *command], caches))
    assert code == 0, errors
    assert_same(finished, output)


def test_sigterm_saves_the_step_and_exits_143(finished, tiny_directory, tmp_path, caches):
    output = tmp_path / "run"
    command = ["train", write_config(tmp_path / "run.yaml", tiny_directory, output, "train.save_every=0")]
    process = start(["-m", "sdft_jax.cli", *command], caches)
    wait_for(output / "metrics.jsonl", process)
    process.terminate()
    code, errors = ended(process)
    assert code == 143, errors
    step = int(re.fullmatch(r"sdft: stopped by SIGTERM after step (\d); .*\n", errors)[1])
    assert step_names(output) == [step]
    assert [row["step"] for row in read(output / "metrics.jsonl")] == list(range(1, step + 1))
    assert cli.main([*command, "train.save_every=2"]) == 0
    shutil.rmtree(output / "checkpoints" / str(step), ignore_errors=True)
    left, right = content(finished), content(output)
    del left["steps"], right["steps"]
    assert left == right


def wait_for(path: Path, process) -> None:
    """Until the file has its first line."""
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.002)


def ended(process) -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def test_metrics_say_everything_at_every_step(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    every = {
        "loss", "forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "implicit_reward",
        "importance_ratio", "completion_length", "truncated", "dropped", "grad_norm", "update_norm",
        "learning_rate", "seconds", "tokens_per_second",
    }  # fmt: skip
    assert all(every <= row.keys() for row in rows)
    phases = {"rollout_tokens_per_second", "learn_tokens_per_second"}
    assert [row["step"] for row in rows if phases & row.keys()] == [2, 6]


def test_evaluations_before_during_and_after(finished):
    rows = read(finished / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert rows[0].keys() == {"step", "accuracy", "length", "teacher", "prior"}
    for row in rows[1:]:
        assert row.keys() == {
            "step", "accuracy", "length", "prior", "distance", "kl_to_base", "kl_to_base_new"
        }  # fmt: skip
    assert 0 < rows[1]["distance"] < rows[2]["distance"]
    assert rows[2]["kl_to_base"] > 0


def test_rollouts_are_samples_to_be_looked_at(finished):
    names = sorted(path.name for path in (finished / "rollouts").iterdir())
    assert names == ["000003.jsonl", "000003.txt", "000006.jsonl", "000006.txt"]
    rows = read(finished / "rollouts" / "000003.jsonl")
    assert len(rows) == 4
    for row in rows:
        assert row["prompt"].startswith("<|im_start|>")
        assert len(row["tokens"]) == len(row["divergence"]) == len(row["log_ratio"]) > 0


def test_a_finished_run_is_only_reported_again(finished, tiny_directory, tmp_path, monkeypatch):
    output = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(train_module, "evaluate", None)
    done = run(tiny_directory, output)
    assert (done.step, len(done.evaluations)) == (6, 3)
    assert_same(finished, output)


def test_a_damaged_checkpoint_is_skipped_aloud_and_made_again(finished, tiny_directory, tmp_path, capsys):
    output = shutil.copytree(finished, tmp_path / "run")
    (output / "checkpoints" / "6" / "meta" / "metadata").write_text("{")
    run(tiny_directory, output)
    said = capsys.readouterr().out
    assert "checkpoints/6 is damaged and was skipped: meta/metadata has 1 bytes" in said
    assert "resuming from step 4" in said
    assert_same(finished, output)


def test_rows_over_a_limit_are_a_share_of_the_metrics(tiny_directory, tmp_path):
    config = config_of(tiny_directory, tmp_path, *PLAIN, "train.steps=1", "data.max_teacher_prompt=24")
    prepared = prepare(config, active=False)
    assert 0 < prepared.dropped.total < 24
    train(config, prepared)
    assert read(tmp_path / "metrics.jsonl")[0]["dropped"] == prepared.dropped.total / 24


def test_numbers_that_are_not_finite_stop_the_run(tiny_directory, tmp_path):
    fast = (*PLAIN, "train.save_every=1", "optimizer.schedule=constant")
    with pytest.raises(SdftError, match=r"step 1: .* update norm inf .*; nothing was saved yet"):
        run(tiny_directory, tmp_path / "a", *fast, "optimizer.learning_rate=1e30")
    with pytest.raises(SdftError) as caught:
        run(tiny_directory, tmp_path / "b", *fast, "optimizer.learning_rate=1e16")
    words = str(caught.value)
    assert re.match(r"step 2: loss nan, .* at rows \[\d+(, \d+){0,7}\] of mini:blax; ", words), words
    assert "the last good checkpoint is that of step 1: lower optimizer.learning_rate" in words
    assert step_names(tmp_path / "b") == [1]
    assert [row["step"] for row in read(tmp_path / "b" / "metrics.jsonl")] == [1]


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations that find these accuracies, one after another."""

    def script(*accuracies):
        found = iter(accuracies)

        def evaluate(*_, **__):
            right = round(10 * next(found))
            return Evaluation((True,) * right + (False,) * (10 - right), ("",) * 10, (1,) * 10, 0.0)

        monkeypatch.setattr(train_module, "evaluate", evaluate)

    return script


NEW_ONLY = ("eval.prior=null", "eval.teacher=false", "train.rollouts_every=0", "train.save_every=1",
            "train.eval_every=1")  # fmt: skip


def test_stops_at_the_accuracy_asked_for_and_goes_on_when_more_is_asked(tiny_directory, tmp_path, scripted):
    scripted(0.0, 0.4, 0.6)
    assert run(tiny_directory, tmp_path, *NEW_ONLY, "train.stop_at=0.5").step == 2
    assert run(tiny_directory, tmp_path, *NEW_ONLY, "train.stop_at=0.5").step == 2
    scripted(0.7, 0.9)
    assert run(tiny_directory, tmp_path, *NEW_ONLY, "train.stop_at=0.8").step == 4


def test_keeps_the_last_and_the_best(tiny_directory, tmp_path, scripted):
    scripted(0.0, 0.1, 0.9, 0.3, 0.9, 0.2, 0.1)
    run(tiny_directory, tmp_path, *NEW_ONLY, "checkpoint.keep_last=1", "checkpoint.keep_best=2")
    assert step_names(tmp_path) == [2, 4, 6]


def test_sft_goes_through_the_same_loop_and_imitates(tiny_directory, tmp_path):
    learns = (*PLAIN, "train.method=sft", "train.steps=20", "data.limit=8", "sampling.max_new_tokens=16",
              "optimizer.learning_rate=1e-2")  # fmt: skip
    run(tiny_directory, tmp_path, *learns)
    rows = read(tmp_path / "metrics.jsonl")
    assert rows[0]["cross_entropy"] > 3
    assert rows[-1]["cross_entropy"] < 0.3 * rows[0]["cross_entropy"]
