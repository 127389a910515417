"""A run's result does not depend on interruptions; stopping and the choice of a model."""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax._src.array import ArrayImpl
from jax._src.lib import guard_lib
from rich.console import Console

from runs import config_of, finish, read, start, step_names, write_config
from sdft_jax import cli
from sdft_jax.algorithm.rollout import target_rollout
from sdft_jax.data.batches import make_batches
from sdft_jax.errors import SdftError
from sdft_jax.evaluation import completions
from sdft_jax.evaluation.scoring import Evaluation
from sdft_jax.mini.lists import Skill, demonstrations
from sdft_jax.models import load_model
from sdft_jax.reporting import sinks
from sdft_jax.reporting.reporter import SILENT, Reporter
from sdft_jax.training import checkpoint, evaluations, loop
from sdft_jax.training.checkpoint import read_meta
from sdft_jax.training.inputs import load_inputs
from sdft_jax.training.loop import total_steps, train
from sdft_jax.types import Metrics

pytestmark = pytest.mark.usefixtures("shared_compilations")

PLAIN = ("eval.path=null", "eval.prior=null", "train.eval_every=0", "train.rollouts_every=0")
"""Settings without evaluations and rollouts."""


def run(model, output, *overrides, **options):
    config = config_of(model, output, *overrides)
    return train(config, load_inputs(config), **options)


def content(output: Path) -> dict:
    """Return everything that a run writes, without timings."""
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
        "meta": read_meta(epath.Path(checkpoint)),
    }


def assert_same(one: Path, two: Path) -> None:
    left, right = content(one), content(two)
    for part in left:
        assert left[part] == right[part], part
    assert sorted(path.name for path in two.iterdir() if path.name.startswith(".")) == [".lock"]


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from sdft_jax import cli
from sdft_jax.training import checkpoint, loop
from sdft_jax.reporting import sinks
from sdft_jax.models.hf import writing

place, output = sys.argv[1], Path(sys.argv[2])
write_all = sinks._write_all

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def write_and_interrupt(sinks, step, metrics):
    if place == "half a line" and step == 4:
        with (output / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')
        die()
    write_all(sinks, step, metrics)
    if place == "first step" and "loss" in metrics:
        die()
    if place == "signal" and step == 3 and "loss" in metrics:
        os.kill(os.getpid(), signal.SIGINT)
    if place == "reader" and step == 3 and "loss" in metrics:
        os.close(reader)

def die_at_step_4():
    if list((output / "checkpoints").glob("4.*")):
        die()

sinks._write_all = write_and_interrupt
if place == "reader":
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
if place == "evaluation":
    evaluate = loop._evaluate
    def evaluate_or_die(run, state, step, *rest):
        if step == 6:
            checkpoint.wait(run.manager)
            die()
        return evaluate(run, state, step, *rest)
    loop._evaluate = evaluate_or_die
if place == "checkpoint":
    sys.path.insert(0, TESTS)
    from before_commit import before_commit
    before_commit(die_at_step_4)
if place == "export":
    writing._write_index = die
sys.exit(cli.main(sys.argv[3:]))
""".replace("TESTS", repr(str(Path(__file__).parents[1])))
PLACES = {
    "first step": "after the metrics of step 1, before the first checkpoint",
    "half a line": "in a line of metrics, after an evaluation that is in no checkpoint",
    "checkpoint": "while a checkpoint is written",
    "evaluation": "in the last evaluation, after the last checkpoint",
    "export": "while the model is exported",
}


def test_run_that_is_killed_repeatedly_ends_bit_identical(finished, tiny_directory, tmp_path, caches):
    output = tmp_path / "run"
    command = ["train", write_config(tmp_path / "run.yaml", tiny_directory, output)]
    for place in PLACES:
        code, errors = finish(start(["-c", INTERRUPTED, place, str(output), *command], caches))
        assert code == -signal.SIGKILL, errors
        if place == "first step":
            assert [row["step"] for row in read(output / "metrics.jsonl")] == [1]
            assert step_names(output) == []
        if place == "half a line":
            assert (output / "metrics.jsonl").read_text().endswith('\n{"step": 4, "lo')
        if place == "checkpoint":
            assert list((output / "checkpoints").glob("4.*"))
        if place in ("evaluation", "export"):
            assert step_names(output) == [4, 6]
            assert ("metrics" in read_meta(epath.Path(output / "checkpoints" / "6"))) == (place == "export")
        assert not (output / "model").exists()
    assert cli.main(command) == 0
    assert_same(finished, output)


OTHER_SETTINGS = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
}
"""Settings of JAX that would change results."""


def assert_stopped(code, errors, number, output):
    """The run has saved step 3, and says so."""
    assert code == 128 + number, errors
    *others, last = errors.splitlines()
    assert last == f"sdft: stopped by {number.name} after step 3: start the same command again to resume."
    assert all("Grain" in line for line in others)  # grain's warning of an older jaxlib
    assert step_names(output) == [3]
    assert [row["step"] for row in read(output / "metrics.jsonl")] == [1, 2, 3]


def assert_same_end(one: Path, two: Path) -> None:
    """The runs differ in their settings for saving only."""
    left, right = content(one), content(two)
    del left["steps"], right["steps"]
    assert left == right


def test_sigint_saves_the_step(finished, tiny_directory, tmp_path, caches):
    """The run is resumed bit-identically, also under other settings of JAX; all signals: test_preemption."""
    output = tmp_path / "run"
    command = ["train", write_config(tmp_path / "run.yaml", tiny_directory, output, "train.save_every=0")]
    interrupted = ["-c", INTERRUPTED, "signal", str(output), *command]
    code, errors = finish(start(interrupted, caches, os.environ | OTHER_SETTINGS))
    assert_stopped(code, errors, signal.SIGINT, output)
    assert cli.main(command) == 0
    assert_same_end(finished, output)


def test_sigterm_saves_the_step(finished, tiny_directory, tmp_path, monkeypatch, capsys):
    """In this process; the resumed run saves more often."""
    output = tmp_path / "run"
    command = ["train", write_config(tmp_path / "run.yaml", tiny_directory, output, "train.save_every=0")]
    write_all = sinks._write_all

    def write_and_interrupt(sinks, step, metrics):
        write_all(sinks, step, metrics)
        if step == 3 and "loss" in metrics:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sinks, "_write_all", write_and_interrupt)
    code = cli.main(command)
    assert_stopped(code, capsys.readouterr().err, signal.SIGTERM, output)
    monkeypatch.setattr(sinks, "_write_all", write_all)
    assert cli.main([*command, "train.save_every=2"]) == 0
    assert_same_end(finished, output)


def test_signal_within_an_evaluation_ends_the_run_before_the_next_batch(
    finished, tiny_directory, tmp_path, monkeypatch, capsys
):
    """Three batches are evaluated before training, and two after it and at step 3, which is not saved yet."""
    output = tmp_path / "run"
    command = ["train", write_config(tmp_path / "run.yaml", tiny_directory, output)]
    generate, batches = completions.generate, []

    def generate_and_interrupt(*arguments):
        batches.append(len(batches))
        if len(batches) == last:
            signal.raise_signal(signal.SIGTERM)
        return generate(*arguments)

    monkeypatch.setattr(completions, "generate", generate_and_interrupt)
    # the resumed run evaluates step 3 first
    for last, step, evaluated in ((4, 3, [0]), (3, 6, [0, 3])):
        batches.clear()
        assert cli.main(command) == 143
        assert f"sdft: stopped by SIGTERM after step {step}: start the same" in capsys.readouterr().err
        assert len(batches) == last, "a batch after the signal"
        assert max(step_names(output)) == step
        assert [row["step"] for row in read(output / "evaluations.jsonl")] == evaluated
    monkeypatch.setattr(completions, "generate", generate)
    assert cli.main(command) == 0
    assert_same(finished, output)


def test_run_goes_on_without_a_reader_of_its_output(finished, tiny_directory, tmp_path, caches):
    output = tmp_path / "run"
    command = ["train", write_config(tmp_path / "run.yaml", tiny_directory, output)]
    code, _ = finish(start(["-c", INTERRUPTED, "reader", str(output), *command], caches))
    assert code == 0
    assert_same(finished, output)


def test_step_is_saved_if_its_evaluation_fails(tiny_directory, tmp_path, scripted, monkeypatch):
    scripted(0.1)  # and StopIteration at step 2
    with pytest.raises(StopIteration):
        run(tiny_directory, tmp_path, *NEW_ONLY, "train.eval_every=2", "train.save_every=0")
    assert step_names(tmp_path) == [2]
    scripted(0.2, 0.3, 0.4)
    assert run(tiny_directory, tmp_path, *NEW_ONLY, "train.eval_every=2", "train.save_every=0").step == 6
    assert [row["step"] for row in read(tmp_path / "evaluations.jsonl")] == [0, 2, 4, 6]


@pytest.mark.parametrize("place", ["make_update", "_next_batch", "throughputs"])
def test_implicit_transfer_in_a_step_is_an_error(tiny_directory, tmp_path, monkeypatch, place):
    """One is added to the second call of the update, the next batch or the report."""
    on_device, on_host, calls = jnp.ones(3), np.ones(3, np.float32), []

    def with_transfer(function):
        def wrapped(*arguments):
            calls.append(place)
            if len(calls) == 2:
                jnp.add(on_device, on_host)
            return function(*arguments)

        return wrapped

    monkeypatch.setattr(loop, "make_update", make_nudge)
    if place == "make_update":
        monkeypatch.setattr(loop, place, lambda learner: with_transfer(make_nudge(learner)))
    else:
        monkeypatch.setattr(loop, place, with_transfer(getattr(loop, place)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tiny_directory, tmp_path, *PLAIN, "train.method=sft")
    assert len(calls) == 2


@pytest.fixture
def device_to_host_guard(monkeypatch):
    """Refuse what JAX refuses on an accelerator: the implicit conversion of an array inside a transfer guard.

    On a CPU, host and device share memory, and JAX allows it.
    """
    value = ArrayImpl._value

    def guarded(array):
        state = guard_lib.thread_local_state()
        level = state.device_to_host or guard_lib.global_state().device_to_host
        if level == guard_lib.TransferGuardLevel.DISALLOW and not state.explicit_device_get:
            raise AssertionError("Disallowed device-to-host transfer")
        return value.fget(array)

    monkeypatch.setattr(ArrayImpl, "_value", property(guarded))


def test_device_to_host_guard(device_to_host_guard):
    array = jax.device_put(0.5)
    with jax.transfer_guard("disallow"):
        assert jax.device_get(array) == 0.5
        with pytest.raises(AssertionError, match="device-to-host"):
            float(array)
    assert float(array) == 0.5


def test_steps_make_no_implicit_transfer(tiny_directory, tmp_path, monkeypatch, device_to_host_guard):
    """None is allowed from the end of the first step to the last, within the loop's own guard or outside."""
    make_update, calls = loop.make_update, []

    def make_guarded(learner):
        update = make_update(learner)

        def guarded(state, batch):
            calls.append(len(calls))
            result = update(state, batch)
            jax.config.update("jax_transfer_guard", "disallow" if len(calls) < 5 else "allow")
            return result

        return guarded

    monkeypatch.setattr(loop, "make_update", make_guarded)
    try:
        done = run(tiny_directory, tmp_path, *PLAIN, "train.steps=5", "train.save_every=0")
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert (done.step, len(calls)) == (5, 5)


def test_reports_make_no_implicit_transfer(tiny_directory, tmp_path, device_to_host_guard):
    """Timings of sampling, rollouts and evaluations: outside the loop's guard, or explicit."""
    settings = ("train.steps=4", "train.phases_every=2", "train.rollouts_every=1", "train.eval_every=2")
    assert run(tiny_directory, tmp_path, *settings, "mesh.data=2").step == 4
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "rollout_tokens_per_second" in row] == [2, 4]
    assert len(list((tmp_path / "rollouts").glob("*.txt"))) == 4


def test_every_step_has_all_metrics(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    names = {
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
    assert all(names <= row.keys() for row in rows)
    phases = {"rollout_tokens_per_second", "learn_tokens_per_second"}
    assert [row["step"] for row in rows if phases & row.keys()] == [2, 6]


def test_evaluations_before_during_and_after_training(finished):
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


def test_rollouts_are_written_as_text_and_as_rows(finished):
    names = sorted(path.name for path in (finished / "rollouts").iterdir())
    assert names == ["000003.jsonl", "000003.txt", "000006.jsonl", "000006.txt"]
    rows = read(finished / "rollouts" / "000003.jsonl")
    assert len(rows) == 4
    for row in rows:
        assert row["prompt"].startswith("<|im_start|>")
        assert len(row["tokens"]) == len(row["divergence"]) == len(row["log_ratio"]) > 0


def test_finished_run_is_not_evaluated_again(finished, tiny_directory, tmp_path, monkeypatch):
    output = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(evaluations, "evaluate", None)
    done = run(tiny_directory, output)
    assert (done.step, len(done.evaluations)) == (6, 3)
    assert_same(finished, output)


def test_damaged_checkpoint_is_reported_and_saved_again(finished, tiny_directory, tmp_path, capsys):
    output = shutil.copytree(finished, tmp_path / "run")
    (output / "checkpoints" / "6" / "meta" / "metadata").write_text("{")
    run(tiny_directory, output)
    output_text = capsys.readouterr().out
    assert "checkpoints/6 is damaged and was skipped: its meta is damaged, or" in output_text
    assert "resuming from step 4" in output_text
    assert_same(finished, output)


def test_inputs_that_changed_since_the_run_began_are_refused(finished, tiny_directory, tmp_path):
    output = shutil.copytree(finished, tmp_path / "run")
    config = config_of(tiny_directory, output)
    inputs = load_inputs(config)
    changed = dataclasses.replace(inputs, digests={**inputs.digests, "the training rows": "other"})
    with pytest.raises(SdftError, match=rf"^the training rows changed since the run in {output} began: rest"):
        train(config, changed)
    assert_same(finished, output)


LARGE = (
    *PLAIN,
    "train.save_every=6",
    "data.check=3",
    "data.max_prompt=16",
    "data.max_teacher_prompt=32",
    "data.prompt_buckets=[16]",
    "data.teacher_buckets=[32]",
)
"""Settings of a source of which 3 rows are read before the first step, rows 0, 11 and 23."""


def write_rows(file: Path, **changes: str) -> str:
    """Write the rows of other tests, except for changed lines; return the override that trains on them."""
    lines = [json.dumps(row) for row in demonstrations(Skill("blax", "reverse", "letters"), 24)]
    for number, line in changes.items():
        lines[int(number.removeprefix("row"))] = line
    file.write_text("\n".join(lines))
    return f"data.path={file}"


@pytest.fixture
def third_batch(tiny_directory, tmp_path):
    """A row that only the third batch of the first pass has, and that is not read before the first step."""
    config = config_of(tiny_directory, tmp_path, *LARGE, write_rows(tmp_path / "rows.jsonl"))
    inputs = load_inputs(config)
    batches = make_batches(inputs.train, config, inputs.stop.pad_id)
    *_, rows = (next(batches).row.tolist() for _ in range(3))
    return f"row{next(row for row in rows if row not in (0, 11, 23))}"


def assert_same_result(one: Path, two: Path) -> None:
    left, right = ((path / "model" / "model.safetensors").read_bytes() for path in (one, two))
    assert left == right
    assert read(one / "metrics.jsonl") == read(two / "metrics.jsonl")


def test_run_ends_at_a_bad_row_and_resumes_when_it_is_repaired(tiny_directory, tmp_path, third_batch):
    rows = write_rows(tmp_path / "rows.jsonl", **{third_batch: '{"prompt": "please'})
    line = int(third_batch.removeprefix("row")) + 1
    with pytest.raises(SdftError, match=rf"rows\.jsonl, line {line} is not valid JSON"):
        run(tiny_directory, tmp_path / "a", *LARGE, rows)
    assert step_names(tmp_path / "a") == [2]
    write_rows(tmp_path / "rows.jsonl")
    run(tiny_directory, tmp_path / "a", *LARGE, rows)
    run(tiny_directory, tmp_path / "b", *LARGE, rows)
    assert_same_result(tmp_path / "a", tmp_path / "b")


def test_run_ends_at_a_long_row_and_resumes_without_it(tiny_directory, tmp_path, third_batch, capsys):
    long = json.dumps({"prompt": "please blax" + " a" * 40, "demonstration": "a"})
    rows = write_rows(tmp_path / "rows.jsonl", **{third_batch: long})
    with pytest.raises(SdftError, match=r"the prompt has \d+ tokens, .*or set data\.overlong=drop"):
        run(tiny_directory, tmp_path / "a", *LARGE, rows, "data.overlong=error")
    assert step_names(tmp_path / "a") == [2]
    capsys.readouterr()
    run(tiny_directory, tmp_path / "a", *LARGE, rows)
    number = third_batch.removeprefix("row")
    assert f"dropped 1 rows while training: 1 over data.max_prompt (rows {number})" in capsys.readouterr().out
    run(tiny_directory, tmp_path / "b", *LARGE, rows)
    assert_same_result(tmp_path / "a", tmp_path / "b")


def test_share_of_dropped_rows_is_a_metric(tiny_directory, tmp_path):
    config = config_of(tiny_directory, tmp_path, *PLAIN, "train.steps=1", "data.max_teacher_prompt=24")
    inputs = load_inputs(config)
    assert 0 < inputs.dropped.total < 24
    train(config, inputs)
    assert read(tmp_path / "metrics.jsonl")[0]["dropped"] == inputs.dropped.total / 24


def test_loss_or_update_that_is_not_finite_stops_the_run(tiny_directory, tmp_path):
    fast = (*PLAIN, "train.save_every=1", "optimizer.schedule=constant")
    with pytest.raises(SdftError, match=r"^step 1: .* update norm inf .*; no checkpoint was saved yet: "):
        run(tiny_directory, tmp_path / "a", *fast, "optimizer.learning_rate=1e30")
    with pytest.raises(SdftError) as caught:
        run(tiny_directory, tmp_path / "b", *fast, "optimizer.learning_rate=1e16")
    message = str(caught.value)
    assert re.match(r"step 2: loss nan, .* at rows \[\d+(, \d+){0,7}\] of mini:blax; ", message), message
    assert "the last good checkpoint is that of step 1: lower optimizer.learning_rate" in message
    assert step_names(tmp_path / "b") == [1]
    assert [row["step"] for row in read(tmp_path / "b" / "metrics.jsonl")] == [1]


def test_debug_nans_locates_a_nan(tiny_directory, tmp_path):
    fast = (*PLAIN, "optimizer.schedule=constant", "optimizer.learning_rate=1e16", "debug.nans=true")
    with pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered in \w+"):
        run(tiny_directory, tmp_path, *fast)
    assert not jax.config.jax_debug_nans  # restored after the run


def make_nudge(learner):
    """Return an update that compiles fast: it adds 0.01 to every parameter."""

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, batch):
        rollout = target_rollout(batch)
        zeros = jnp.zeros(rollout.tokens.shape)
        names = ("loss", "completion_length", "completion_tokens", "grad_norm", "update_norm")
        params = jax.tree.map(lambda p: p + 0.01, state.params)
        metrics = Metrics({name: jnp.zeros(()) for name in names}, rollout, zeros, zeros)
        return dataclasses.replace(state, step=state.step + 1, params=params), metrics

    return update


@pytest.fixture
def scripted(monkeypatch):
    """A function that sets the results of the next evaluations: accuracies, or (accuracy, distance).

    Between them, updates are those of `make_nudge`.
    """
    monkeypatch.setattr(loop, "make_update", make_nudge)

    def script(*results):
        remaining = iter(result if isinstance(result, tuple) else (result, 0.0) for result in results)

        def evaluate(*_, **__):
            accuracy, kl = next(remaining)
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


def test_run_stops_at_an_accuracy_and_continues_if_it_is_raised(tiny_directory, tmp_path, scripted):
    scripted(0.0, 0.4, 0.6)
    assert run(tiny_directory, tmp_path, *NEW_ONLY, "train.stop_at=0.5").step == 2
    assert run(tiny_directory, tmp_path, *NEW_ONLY, "train.stop_at=0.5").step == 2
    scripted(0.7, 0.9)
    assert run(tiny_directory, tmp_path, *NEW_ONLY, "train.stop_at=0.8").step == 4


def test_last_and_best_checkpoints_are_kept(tiny_directory, tmp_path, scripted):
    scripted(0.0, 0.1, 0.9, 0.3, 0.9, 0.2, 0.1)
    run(tiny_directory, tmp_path, *NEW_ONLY, "checkpoint.keep_last=1", "checkpoint.keep_best=2")
    assert step_names(tmp_path) == [2, 4, 6]


BEST = (*NEW_ONLY, "train.choose=best", "checkpoint.keep_last=1", "train.steps=4", "train.save_every=0")


def exported(output: Path) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_model(output / "model")[1])]


def test_checkpoint_with_the_best_score_is_exported(tiny_directory, tmp_path, scripted):
    scripted(0.1, 0.4, 0.9, 0.9, 0.3)
    done = run(tiny_directory, tmp_path, *BEST)
    assert done.step == 3, "the newest of equal ones"
    assert step_names(tmp_path) == [3, 4]
    with ocp.PyTreeCheckpointer() as reader:
        three, four = (
            [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(reader.restore(place)["params"])]
            for place in (tmp_path / "checkpoints" / str(step) / "state" for step in (3, 4))
        )
    assert exported(tmp_path) == three != four
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(done.params)] == three
    (tmp_path / "model" / "model.safetensors").unlink()
    assert run(tiny_directory, tmp_path, *BEST).step == 3, "again, from the checkpoint"
    assert exported(tmp_path) == three


def test_initial_model_is_exported_if_none_is_better(tiny_directory, tmp_path, scripted):
    scripted(0.5, 0.4, 0.4, 0.3, 0.2)
    assert run(tiny_directory, tmp_path, *BEST, "optimizer.freeze=[embed]").step == 0
    base = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_model(tiny_directory)[1])]
    assert exported(tmp_path) == base


def test_checkpoint_beyond_max_kl_ends_the_run_and_is_not_exported(tiny_directory, tmp_path, scripted):
    limits = ("eval.prior=mini:old", "train.max_kl=0.5")
    scripted(0.1, 1.0, 0.4, (1.0, 0.2), 0.3, (1.0, 0.4), 0.9, (1.0, 0.6))  # new and prior skills in turn
    assert run(tiny_directory, tmp_path, *BEST, *limits).step == 1
    assert [row["step"] for row in read(tmp_path / "evaluations.jsonl")] == [0, 1, 2, 3]


def test_scores_are_accuracies_on_validation_rows(tiny_directory, tmp_path, scripted):
    scripted(0.9, 0.1, 0.2, 0.6, 0.9, 0.5)  # test and validation in turn
    more = ("eval.validation=mini:blax:validation", "train.patience=1", "train.steps=4")
    assert run(tiny_directory, tmp_path, *BEST, *more).step == 1
    rows = read(tmp_path / "evaluations.jsonl")
    assert [(row["accuracy"], row["validation"]) for row in rows] == [(0.9, 0.1), (0.2, 0.6), (0.9, 0.5)]


def scores_of(output: Path, step: int) -> list[float]:
    meta = read_meta(epath.Path(output / "checkpoints" / str(step)))
    assert meta["metrics"]["score"] == meta["scores"][-1]
    return meta["scores"]


@pytest.mark.parametrize("choose", ["last", "best"])
def test_resumed_run_has_its_earlier_scores(tiny_directory, tmp_path, scripted, monkeypatch, choose):
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


def test_run_that_is_killed_before_its_first_step_starts_again(
    tiny_directory, tmp_path, scripted, monkeypatch
):
    """Its initial model reaches stop_at, which does not end a run before its first step."""
    next_batch = loop._next_batch
    monkeypatch.setattr(loop, "_next_batch", lambda *_: 1 / 0)
    scripted(0.9)
    with pytest.raises(ZeroDivisionError):
        run(tiny_directory, tmp_path, *BEST, "train.stop_at=0.5")
    assert step_names(tmp_path) == [0]
    monkeypatch.setattr(loop, "_next_batch", next_batch)
    scripted(0.9, 1.0)
    assert run(tiny_directory, tmp_path, *BEST, "train.stop_at=0.5").step == 1
    assert [row["step"] for row in read(tmp_path / "evaluations.jsonl")] == [0, 1]


def test_measurements_of_watch_join_the_evaluations_and_decide_nothing(tiny_directory, tmp_path, scripted):
    scripted(0.5, 0.4, 0.3)
    parameters = []

    def watch(model, params, reporter):
        parameters.append(np.asarray(jax.tree.leaves(params)[0]).tobytes())
        return {"accuracy/other": len(parameters) / 10}

    assert run(tiny_directory, tmp_path, *BEST, "train.steps=2", watch=watch).step == 0
    rows = read(tmp_path / "evaluations.jsonl")
    assert [row["accuracy/other"] for row in rows] == [0.1, 0.2, 0.3]
    assert len(set(parameters)) == 3, "each evaluation has its own parameters"


def test_the_oracle_takes_no_step_and_exports_the_initial_model(tiny_directory, tmp_path, monkeypatch):
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


def test_sft_runs_in_the_same_loop_and_learns(tiny_directory, tmp_path):
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


QUIET = Reporter(Console(quiet=True))


@pytest.mark.parametrize(("reporter", "rows"), [(SILENT, 0), (QUIET, 2)], ids=["silent", "quiet"])
def test_silent_process_writes_no_metrics(tiny_directory, tmp_path, scripted, capsys, reporter, rows):
    """A quiet one, which prints nothing either, does."""
    scripted(0.1, 0.2)
    done = run(tiny_directory, tmp_path, *NEW_ONLY, "train.steps=1", reporter=reporter)
    assert (done.step, len(done.evaluations)) == (1, rows)
    assert step_names(tmp_path) == [1]
    written = {"metrics.jsonl", "evaluations.jsonl"} & {path.name for path in tmp_path.iterdir()}
    assert len(written) == rows
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (("train.steps=7", "train.epochs=3"), 7),
        (("train.steps=null", "train.epochs=2"), 5),
        (("train.steps=null", "train.epochs=0.01"), 1),
        (("train.steps=7", "train.method=oracle"), 0),
    ],
)
def test_total_steps(overrides, steps):
    """20 rows in batches of 8."""
    assert total_steps(config_of("mini", "unused", *overrides), 20) == steps


@pytest.mark.parametrize(("share", "imitated"), [(0.0, 10), (0.25, 8), (0.5, 5), (0.7, 3), (1.0, 0)])
def test_steps_before_the_general_phase_of_reinvoke(share, imitated):
    """Of 10 steps, the last share distills the base model on general prompts."""
    inputs = types.SimpleNamespace(general=("row",))
    settings = ("train.method=reinvoke", "data.general=unused", f"train.reinvoke={share}")
    assert loop._general_phase(config_of("mini", "unused", *settings), inputs, 10) == (("row",), imitated)
    assert loop._general_phase(config_of("mini", "unused"), inputs, 10) is None
