"""Checkpoints survive kills, damage and full disks, and are restored on any mesh."""

import dataclasses
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from jax.experimental import multihost_utils
from states import EIGHT, TARGETS, abstract, assert_identical, batches, placed, train_state, with_noise

from runs import finish, step_names
from sdft_jax.algorithm.state import abstract_state, apply_gradients, init_state
from sdft_jax.errors import SdftError
from sdft_jax.training import checkpoint
from sdft_jax.types import TrainState
from tiny import tiny_learner


def directory_of(output: Path) -> epath.Path:
    """Return the directory of a run's checkpoints."""
    return epath.Path(output) / "checkpoints"


def open_manager(output: Path, **keep):
    return checkpoint.open_manager(directory_of(output), **keep)


def write(output: Path, steps, scores=None, state=None, **keep) -> None:
    """Save checkpoints of these steps, with these scores."""
    data = batches()
    with open_manager(output, **keep) as manager:
        for index, step in enumerate(steps):
            next(data)
            meta = {"step": step, "run": "this"}
            assert checkpoint.save(manager, step, state or train_state(step), data, meta)
            if scores:
                checkpoint.record_evaluation(manager, step, {"metrics": {"score": scores[index]}})


def chosen(output: Path, best: bool = False, run: str | None = None) -> int:
    """Return the step of the checkpoint whose parameters are loaded."""
    wanted = {"params": abstract(train_state()).params}
    loaded = checkpoint.load(directory_of(output), wanted, run, best)
    assert_identical(loaded.state, {"params": train_state(loaded.step).params})
    return loaded.step


def restore(output: Path, like: TrainState | None = None, data=None) -> checkpoint.Restored | None:
    with open_manager(output) as manager:
        return checkpoint.restore_latest(manager, abstract(like or train_state()), data or batches())


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run with checkpoints 1, 2 and 3, of which 2 has the best score; tests use copies."""
    output = tmp_path_factory.mktemp("three")
    write(output, [1, 2, 3], [0.1, 0.9, 0.2], keep_last=3)
    return output


@pytest.fixture
def run(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    output = tmp_path_factory.mktemp("sharded")
    write(output, [5], state=placed(train_state(), EIGHT))
    return output


@pytest.mark.parametrize("target", TARGETS)
def test_round_trip_is_bit_identical_on_any_mesh(sharded, target):
    like = placed(train_state(), TARGETS[target])
    restored = restore(sharded, like)
    assert_identical(restored.state, train_state())
    for got, wanted in zip(jax.tree.leaves(restored.state), jax.tree.leaves(like), strict=True):
        assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)


@pytest.mark.parametrize(
    "settings", ["optimizer.moments=float8", "optimizer.moments=bfloat16", "optimizer.name=adafactor"]
)
def test_the_state_of_an_optimizer_moves_to_another_mesh(tmp_path, settings):
    learner, params = tiny_learner(settings, mesh=(2, 2, 2))
    state = init_state(learner, params)
    gradients = jax.tree.map(jnp.sin, state.params)
    state, _ = jax.jit(lambda s, g: apply_gradients(learner, s, g))(state, gradients)
    other, _ = tiny_learner(settings, mesh=(1, 4, 1))
    with open_manager(tmp_path) as manager:
        assert checkpoint.save(manager, 1, state, batches(), {})
    with open_manager(tmp_path) as manager:
        restored = checkpoint.restore_latest(manager, abstract_state(other), batches())
    assert_identical(restored.state, state)


def test_iterator_and_meta_are_restored(run):
    data, uninterrupted = batches(), batches()
    restored = restore(run, data=data)
    assert (restored.step, restored.skipped) == (3, ())
    assert restored.meta.items() >= {"step": 3, "run": "this", "metrics": {"score": 0.2}}.items()
    for _ in range(3):
        next(uninterrupted)
    assert next(data).tolist() == next(uninterrupted).tolist()


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    state = placed(train_state(), EIGHT)
    with open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, state, batches(), {})
        jax.block_until_ready(overwrite(state))
    assert_identical(restore(tmp_path).state, train_state())


def test_empty_directory_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None


def test_saving_a_step_again_does_nothing(tmp_path):
    with open_manager(tmp_path) as manager:
        assert checkpoint.save(manager, 4, train_state(), batches(), {})
        assert not checkpoint.save(manager, 4, train_state(), batches(), {})


def test_saving_does_not_query_for_preemption(tmp_path, monkeypatch):
    """JAX would take the number of the step for that of a check by the loop."""
    queries = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", queries.append)
    with open_manager(tmp_path) as manager:
        assert checkpoint.save(manager, 1, train_state(), batches(), {})
    assert queries == []


def test_newest_and_best_are_kept_across_a_restart(tmp_path):
    write(tmp_path, [1, 2, 3], [0.3, 0.9, 0.2], keep_last=2, keep_best=1)
    assert step_names(tmp_path) == [2, 3]
    write(tmp_path, [4, 5, 6], [0.1, 0.8, 0.4], keep_last=2, keep_best=1)
    assert step_names(tmp_path) == [2, 5, 6]
    assert chosen(tmp_path) == 6
    assert chosen(tmp_path, best=True) == 2
    write(tmp_path, [7], [0.9], keep_last=1, keep_best=2)
    assert step_names(tmp_path) == [2, 7]
    assert chosen(tmp_path, best=True) == 7


def test_without_scores_only_the_newest_are_kept(tmp_path):
    write(tmp_path, [1, 2, 3, 4], keep_last=2, keep_best=3)
    assert step_names(tmp_path) == [3, 4]
    with pytest.raises(SdftError, match=r"no intact checkpoint with a score: set train\.eval_every"):
        chosen(tmp_path, best=True)


def test_checkpoint_without_a_score_is_never_the_best(tmp_path):
    write(tmp_path, [1, 2, 3, 4], [None, 0.2, 0.0, None], keep_last=1, keep_best=1)
    assert step_names(tmp_path) == [2, 4]
    assert chosen(tmp_path, best=True) == 2
    write(tmp_path, [5], [None], keep_last=1, keep_best=1)
    assert step_names(tmp_path) == [2, 5]


def test_step_0_is_a_checkpoint_like_others(tmp_path):
    write(tmp_path, [0, 1], [0.5, 0.4], keep_last=1, keep_best=1)
    assert step_names(tmp_path) == [0, 1]
    assert chosen(tmp_path, best=True) == 0


def test_run_without_checkpoints_is_named(tmp_path):
    with pytest.raises(SdftError, match=f"^{tmp_path} has no checkpoint: give the output directory of a run"):
        chosen(tmp_path)
    with pytest.raises(SdftError, match=f"^{tmp_path} has no intact checkpoint with a score: "):
        chosen(tmp_path, best=True)


def flip(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 0x10 for byte in path.read_bytes()))


def cut(path: Path) -> None:
    """Keep a sixteenth: the rest of a data file may be an index that a later one replaces."""
    os.truncate(path, path.stat().st_size // 16)


def largest(checkpoint_dir: Path) -> Path:
    return max(checkpoint_dir.glob("state/ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


DAMAGE = {"flipped bytes": flip, "cut short": cut, "missing": os.remove}
VICTIMS = {
    "arrays": largest,
    "index": lambda path: path / "state" / "manifest.ocdbt",
    "meta": lambda path: path / "meta" / "metadata",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("victim", VICTIMS)
def test_every_damaged_file_is_detected(run, victim, kind):
    DAMAGE[kind](VICTIMS[victim](run / "checkpoints" / "3"))
    assert restore(run).step == 2


def test_damaged_checkpoints_are_skipped_with_a_message_and_can_be_saved_again(run):
    flip(largest(run / "checkpoints" / "3"))
    cut(run / "checkpoints" / "2" / "meta" / "metadata")
    restored = restore(run)
    assert restored.step == 1
    assert_identical(restored.state, train_state(1))
    three, two = restored.skipped
    assert re.search(r"checkpoints/3 is damaged and was skipped: .+\.$", three)
    assert "checkpoints/2 is damaged and was skipped: its meta is damaged, or of an older version" in two
    write(run, [2, 3], keep_last=3)
    assert restore(run).step == 3
    assert (run / "checkpoints" / "damaged-3").exists()


@pytest.mark.parametrize("kind", DAMAGE)
def test_whatever_file_is_damaged_a_restored_state_is_the_saved_one(run, kind):
    """Some files of Orbax are not needed; no damage to any file gives another state."""
    newest = run / "checkpoints" / "3"
    shutil.copytree(newest, run / "whole")
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 8
    for file in files:
        DAMAGE[kind](newest / file)
        chosen(run)  # compares the parameters with those that were saved
        shutil.rmtree(newest)
        shutil.copytree(run / "whole", newest)
    assert chosen(run) == 3


def test_arrays_of_another_checkpoint_are_not_restored(run):
    """Its files are intact, and belong to another step."""
    shutil.rmtree(run / "checkpoints" / "3" / "state")
    shutil.copytree(run / "checkpoints" / "1" / "state", run / "checkpoints" / "3" / "state")
    restored = restore(run)
    assert restored.step == 2
    assert restored.skipped[0].endswith("is not what was saved.")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "Stale file handle"),
        (ValueError('PERMISSION_DENIED: Error opening "zarr" driver'), "PERMISSION_DENIED"),
    ],
)
def test_storage_that_cannot_be_read_is_not_damage(run, monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", fail)
    with pytest.raises(SdftError, match=rf"^checkpoint \S+/3 cannot be read \({reason}\): fix this"):
        restore(run)
    assert step_names(run) == [1, 2, 3]


@pytest.mark.parametrize("name", ["metadata", "evaluation.json"])
def test_record_that_cannot_be_read_is_not_damage(run, monkeypatch, name):
    """Otherwise the newest checkpoint would be set aside, or the best one deleted."""
    read_bytes = Path.read_bytes

    def fail(path):
        if path.name == name and "checkpoints" in path.parts:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(SdftError, match=rf"{name}' cannot be read \(Stale file handle\): fix this and run"):
        restore(run)
    with pytest.raises(SdftError, match=r"Stale file handle"):
        write(run, [4], keep_last=1)
    monkeypatch.undo()
    assert {1, 2, 3} <= set(step_names(run))


def test_checkpoint_of_another_step_or_run_is_skipped(run):
    shutil.rmtree(run / "checkpoints" / "3")
    shutil.copytree(run / "checkpoints" / "1", run / "checkpoints" / "3")
    assert chosen(run) == 2
    restored = restore(run)
    assert restored.step == 2
    assert restored.skipped[0].endswith("3 is damaged and was skipped: it holds step 1.")
    assert_identical(restored.state, train_state(2))
    assert chosen(run, run="this") == 2
    with pytest.raises(SdftError, match=r"2 is damaged and was skipped: it belongs to another run\."):
        chosen(run, run="other")


def test_checkpoint_of_another_structure_is_refused(run):
    other = dataclasses.replace(train_state(), opt_state=())
    problem = r"its opt_state/1/0/count is int32\[\], and this run's is nothing"
    with pytest.raises(SdftError, match=rf"^checkpoint \S+/3 does not fit this run \({problem}\): its model"):
        restore(run, like=other)
    wider = dataclasses.replace(train_state(), frozen={"embed": jnp.zeros((9, 16))})
    with pytest.raises(SdftError, match=r"its frozen/embed is float32\[8,16\], and this run's is float32\[9"):
        restore(run, like=wider)


def test_damaged_evaluation_is_ignored(run):
    file = run / "checkpoints" / "2" / "evaluation.json"
    assert chosen(run, best=True) == 2
    file.write_text(file.read_text().replace("0.9", "0.8"))
    assert chosen(run, best=True) == 3
    assert "metrics" not in checkpoint.read_meta(directory_of(run) / "2")


def test_if_all_are_damaged_an_error_is_raised_and_none_is_renamed(run):
    for step in (1, 2, 3):
        flip(largest(run / "checkpoints" / str(step)))
    with pytest.raises(
        SdftError, match=r"^every checkpoint in \S+/checkpoints is damaged \(.*\): restore one"
    ):
        restore(run)
    assert step_names(run) == [1, 2, 3]


KILLED = """
import os, signal, sys, threading, time
sys.path[:0] = {paths!r}
import conftest
import states
import test_checkpoint as t
from before_commit import before_commit
from sdft_jax.training import checkpoint

moment, output = sys.argv[1:]
directory = t.directory_of(output)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def commit_first_only():
    if not (directory / "1").exists():
        return
    if moment == "just before the commit":
        die()
    threading.Event().wait()  # never commit

before_commit(commit_first_only)
with t.open_manager(output) as manager:
    t.save_and_wait(manager, 1, states.train_state(1))
    checkpoint.save(manager, 2, states.with_noise(2, 1 << 25), states.batches(), dict())
    while not any(directory.glob("2.*/state*/ocdbt*")):
        time.sleep(0.001)
    if moment == "while arrays are written":
        die()
"""
MOMENTS = ("while arrays are written", "just before the commit")


def start_killed(output: Path, moment: str) -> subprocess.Popen:
    here = Path(__file__).parent
    code = KILLED.format(paths=[str(here), str(here.parent)])
    command = [sys.executable, "-c", code, moment, str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_kill_during_a_save_leaves_the_previous_checkpoint(tmp_path):
    processes = {moment: start_killed(tmp_path / moment, moment) for moment in MOMENTS}
    for moment, process in processes.items():
        code, errors = finish(process)
        assert code == -signal.SIGKILL, errors
        directory = tmp_path / moment / "checkpoints"
        names = sorted(path.name for path in directory.iterdir())
        assert [name.partition(".")[0] for name in names] == ["1", "2"]
        assert names[1] != "2", "the checkpoint was committed before the kill"
        restored = restore(tmp_path / moment)
        assert (restored.step, restored.skipped) == (1, ())
        assert_identical(restored.state, train_state(1))
        with open_manager(tmp_path / moment) as manager:  # removes the remains of step 2 before it saves
            save_and_wait(manager, 2, train_state(2))
        assert sorted(os.listdir(directory)) == ["1", "2"]


def save_and_wait(manager, step: int, state: TrainState) -> None:
    checkpoint.save(manager, step, state, batches(), {})
    checkpoint.wait(manager)


def check_full_disk(output: Path) -> None:
    """Save more than the disk can hold; the space is freed, and the next save succeeds."""
    with open_manager(output) as manager:
        save_and_wait(manager, 1, train_state(1))
        with pytest.raises(SdftError, match=r"^checkpoints in \S+ cannot be written \((No space|File too)"):
            save_and_wait(manager, 2, with_noise(2, 1 << 22))
        assert checkpoint.save(manager, 3, train_state(3), batches(), {})
    assert sorted(os.listdir(output / "checkpoints")) == ["1", "3"]
    restored = restore(output)
    assert restored.step == 3
    assert_identical(restored.state, train_state(3))


UPSTREAM = pytest.mark.filterwarnings(  # Orbax closes its event loop before the other writes have failed
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@UPSTREAM
def test_full_disk_is_reported_and_freed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        check_full_disk(disk / "run")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@UPSTREAM
def test_file_size_limit_is_reported_and_freed(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        check_full_disk(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
