"""A run ends the same however often it is killed; it stops where it must, and keeps what it should."""

import dataclasses
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
from sdft_jax import cli
from sdft_jax.algorithm.baselines import UPDATES
from sdft_jax.algorithm.baselines.oracle import make_oracle_update
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.scoring import Evaluation
from sdft_jax.models import load_model
from sdft_jax.training import checkpoint, evaluations
from sdft_jax.training import loop as train_module
from sdft_jax.training.inputs import prepare
from sdft_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("shared_compilations")

PLAIN = ("eval.path=null", "eval.prior=null", "train.eval_every=0", "train.rollouts_every=0")
"""Steps alone."""


def run(model, output, *overrides, watch=None):
    config = config_of(model, output, *overrides)
    return train(config, prepare(config, active=False), watch=watch)


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
        "data": (checkpoint / "data" / "metadata").read_bytes(),
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
from sdft_jax import cli
from sdft_jax.training import checkpoint
from sdft_jax.reporting import sinks
from sdft_jax.models.hf import writing

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
    sinks._write_all = dying(sinks._write_all, half_a_line)
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
        "loss",
        "forward_kl",
        "reverse_kl",
        "student_entropy",
        "teacher_entropy",
        "implicit_reward",
        "importance_ratio",
        "completion_length",
        "truncated",
        "dropped",
        "grad_norm",
        "update_norm",
        "learning_rate",
        "seconds",
        "tokens_per_second",
    }
    assert all(every <= row.keys() for row in rows)
    phases = {"rollout_tokens_per_second", "learn_tokens_per_second"}
    assert [row["step"] for row in rows if phases & row.keys()] == [2, 6]


def test_evaluations_before_during_and_after(finished):
    rows = read(finished / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert rows[0].keys() == {"step", "accuracy", "length", "teacher", "prior"}
    for row in rows[1:]:
        assert row.keys() == {
            "step",
            "accuracy",
            "length",
            "prior",
            "distance",
            "kl_to_base",
            "kl_to_base_new",
        }
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
    monkeypatch.setattr(evaluations, "evaluate", None)
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


def test_a_nan_is_found_where_it_arises(tiny_directory, tmp_path):
    fast = (*PLAIN, "optimizer.schedule=constant", "optimizer.learning_rate=1e16", "debug.nans=true")
    with pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered in \w+"):
        run(tiny_directory, tmp_path, *fast)
    assert not jax.config.jax_debug_nans  # what comes after is as it was


def make_nudge(*arguments, **options):
    """An update that compiles at once: every parameter grows by a hundredth."""
    count = make_oracle_update(*arguments, **options)

    def update(state, batch):
        state, metrics = count(state, batch)
        return dataclasses.replace(state, params=jax.tree.map(lambda p: p + 0.01, state.params)), metrics

    return update


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations that find these accuracies, or (accuracy, distance from the base), one after another.

    What is between them is not learned: method sft is `make_nudge`.
    """
    monkeypatch.setitem(UPDATES, "sft", make_nudge)

    def script(*results):
        found = iter(result if isinstance(result, tuple) else (result, 0.0) for result in results)

        def evaluate(*_, **__):
            accuracy, kl = next(found)
            right = round(10 * accuracy)
            return Evaluation((True,) * right + (False,) * (10 - right), ("",) * 10, (1,) * 10, kl)

        monkeypatch.setattr(evaluations, "evaluate", evaluate)

    return script


NEW_ONLY = (
    "eval.prior=null",
    "eval.teacher=false",
    "train.rollouts_every=0",
    "train.save_every=1",
    "train.eval_every=1",
    "train.method=sft",
)


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


BEST = (*NEW_ONLY, "train.choose=best", "checkpoint.keep_last=1", "train.steps=4", "train.save_every=0")


def exported(output: Path) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_model(output / "model")[1])]


def test_the_checkpoint_of_best_score_becomes_the_model(tiny_directory, tmp_path, scripted):
    scripted(0.1, 0.4, 0.9, 0.9, 0.3)
    done = run(tiny_directory, tmp_path, *BEST)
    assert done.step == 3, "the newest of equals"
    assert step_names(tmp_path) == [3, 4]
    with ocp.PyTreeCheckpointer() as reader:
        three, four = (
            [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(reader.restore(place)["params"])]
            for place in (tmp_path / "checkpoints" / str(step) / "state" for step in (3, 4))
        )
    assert exported(tmp_path) == three != four
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(done.params)] == three
    (tmp_path / "model" / "model.safetensors").unlink()
    assert run(tiny_directory, tmp_path, *BEST).step == 3, "again, from disk"
    assert exported(tmp_path) == three


def test_the_initial_model_is_chosen_if_nothing_is_better(tiny_directory, tmp_path, scripted):
    scripted(0.5, 0.4, 0.4, 0.3, 0.2)
    assert run(tiny_directory, tmp_path, *BEST, "optimizer.freeze=[embed]").step == 0
    base = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_model(tiny_directory)[1])]
    assert exported(tmp_path) == base


def test_a_checkpoint_too_far_from_the_base_ends_the_run_unchosen(tiny_directory, tmp_path, scripted):
    limits = ("eval.prior=mini:old", "train.max_kl=0.5")
    scripted(0.1, 1.0, 0.4, (1.0, 0.2), 0.3, (1.0, 0.4), 0.9, (1.0, 0.6))  # new and old skills in turn
    assert run(tiny_directory, tmp_path, *BEST, *limits).step == 1
    assert [row["step"] for row in read(tmp_path / "evaluations.jsonl")] == [0, 1, 2, 3]


def test_scores_are_those_of_validation_rows(tiny_directory, tmp_path, scripted):
    scripted(0.9, 0.1, 0.2, 0.6, 0.9, 0.5)  # test and validation in turn
    more = ("eval.validation=mini:blax:validation", "train.patience=1", "train.steps=4")
    assert run(tiny_directory, tmp_path, *BEST, *more).step == 1
    rows = read(tmp_path / "evaluations.jsonl")
    assert [(row["accuracy"], row["validation"]) for row in rows] == [(0.9, 0.1), (0.2, 0.6), (0.9, 0.5)]


def scores_of(output: Path, step: int) -> list[float]:
    meta = json.loads((output / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    assert meta["metrics"].get("score", meta["scores"][-1]) == meta["scores"][-1]
    return meta["scores"]


@pytest.mark.parametrize("choose", ["last", "best"])
def test_a_resumed_run_remembers_its_scores(tiny_directory, tmp_path, scripted, monkeypatch, choose):
    save = checkpoint.save

    def die(manager, step, *arguments):
        if step == 3:
            raise KeyboardInterrupt
        return save(manager, step, *arguments)

    patient = (*NEW_ONLY, "train.patience=3", f"train.choose={choose}")
    scripted(0.5, 0.4, 0.3, 0.1)
    monkeypatch.setattr(checkpoint, "save", die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_directory, tmp_path, *patient)
    monkeypatch.setattr(checkpoint, "save", save)
    assert scores_of(tmp_path, 2) == [0.5, 0.4, 0.3]
    scripted(0.2)
    assert run(tiny_directory, tmp_path, *patient).step == (3 if choose == "last" else 0)
    assert scores_of(tmp_path, 3) == [0.5, 0.4, 0.3, 0.2]
    assert [row["accuracy"] for row in read(tmp_path / "evaluations.jsonl")] == [0.5, 0.4, 0.3, 0.2]


def test_a_run_killed_before_its_first_step_goes_on_as_if_it_had_not_been(
    tiny_directory, tmp_path, scripted, monkeypatch
):
    """Its initial model reaches stop_at, which ends no run that has not made a step."""
    next_batch = train_module._next_batch
    monkeypatch.setattr(train_module, "_next_batch", lambda *_: 1 / 0)
    scripted(0.9)
    with pytest.raises(ZeroDivisionError):
        run(tiny_directory, tmp_path, *BEST, "train.stop_at=0.5")
    assert step_names(tmp_path) == [0]
    monkeypatch.setattr(train_module, "_next_batch", next_batch)
    scripted(0.9, 1.0)
    assert run(tiny_directory, tmp_path, *BEST, "train.stop_at=0.5").step == 1
    assert [row["step"] for row in read(tmp_path / "evaluations.jsonl")] == [0, 1]


def test_what_is_watched_joins_the_evaluations_and_decides_nothing(tiny_directory, tmp_path, scripted):
    scripted(0.5, 0.4, 0.3)
    seen = []

    def watch(model, params):
        seen.append(np.asarray(jax.tree.leaves(params)[0]).tobytes())
        return {"accuracy/other": len(seen) / 10}

    assert run(tiny_directory, tmp_path, *BEST, "train.steps=2", watch=watch).step == 0
    rows = read(tmp_path / "evaluations.jsonl")
    assert [row["accuracy/other"] for row in rows] == [0.1, 0.2, 0.3]
    assert len(set(seen)) == 3, "each time with the parameters of then"


def test_the_oracle_makes_no_step_and_leaves_the_model_as_it_was(tiny_directory, tmp_path, monkeypatch):
    def evaluate(*_, teacher, **__):
        return Evaluation((teacher, False), ("",) * 2, (1,) * 2, None)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    done = run(tiny_directory, tmp_path, "train.method=oracle", "train.epochs=2", "train.steps=null")
    assert done.step == 0
    (row,) = read(tmp_path / "evaluations.jsonl")
    assert (row["step"], row["accuracy"], row["prior"]) == (0, 0.5, 0.0)
    assert read(tmp_path / "metrics.jsonl") == []
    base = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_model(tiny_directory)[1])]
    assert exported(tmp_path) == base


def test_sft_goes_through_the_same_loop_and_imitates(tiny_directory, tmp_path):
    learns = (
        *PLAIN,
        "train.method=sft",
        "train.steps=20",
        "data.limit=8",
        "sampling.max_new_tokens=16",
        "optimizer.learning_rate=1e-2",
    )
    run(tiny_directory, tmp_path, *learns)
    rows = read(tmp_path / "metrics.jsonl")
    assert rows[0]["cross_entropy"] > 3
    assert rows[-1]["cross_entropy"] < 0.3 * rows[0]["cross_entropy"]
