"""Tests of the pool: each trial runs once, workers do not change results, and errors name the trial."""

import os

import pytest

from labs import tiny_arm, tiny_world
from sdft_jax.errors import SdftError
from sdft_jax.studies.lab import pool
from sdft_jax.studies.lab.pool import default_workers, run_trials
from sdft_jax.studies.lab.trials import Trial, stored

pytestmark = pytest.mark.usefixtures("shared_compilations")


@pytest.fixture(scope="module")
def world(tiny_directory):
    return tiny_world(tiny_directory)


@pytest.fixture(scope="module")
def trials(world):
    """Three trials; the last is the second with another title."""
    first, second = tiny_arm(world, seed=1), tiny_arm(world)
    return [first, second, Trial(second.work, second.settings, "a twin")]


@pytest.fixture(scope="module")
def performed():
    """Titles of the trials that run in this process."""
    titles = []
    perform = pool.perform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pool, "perform", lambda trial, directory: (titles.append(trial.title), perform(trial, directory))
        )
        yield titles


@pytest.fixture(scope="module")
def single(trials, performed, tmp_path_factory):
    """The (directory, results) of a run with one worker."""
    directory = tmp_path_factory.mktemp("single")
    return directory, run_trials(trials, directory, 1, "one")


def test_results_have_the_order_of_the_trials_and_equal_trials_run_once(trials, single, performed):
    directory, (one, two, twin) = single
    assert two == twin != one
    assert (one, two) == tuple(stored(trial, directory) for trial in trials[:2])
    assert len(performed) == 2
    assert run_trials(trials[::-1], directory, 1, "again") == [twin, two, one]
    assert len(performed) == 2


def test_two_workers_give_the_same_results_as_one(trials, single, tmp_path, caches, monkeypatch):
    for name, value in (
        ("JAX_COMPILATION_CACHE_DIR", str(caches / "jax")),
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
        ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
    ):
        monkeypatch.setenv(name, value)
    before = os.sched_getaffinity(0)
    assert run_trials(trials, tmp_path, 2, "two") == single[1]
    assert os.sched_getaffinity(0) == before
    assert {path.name for path in tmp_path.iterdir()} == {trial.key for trial in trials}


def test_error_names_the_failed_trial_and_its_log_and_other_results_are_stored(world, tmp_path, performed):
    performed.clear()
    good = tiny_arm(world)
    settings = {key: value for key, value in good.settings.items() if key != "method"}
    bad = Trial("arm", settings, "the bad one")
    with pytest.raises(SdftError) as failure:
        run_trials([good, bad, tiny_arm(world, seed=1)], tmp_path, 1, "pool")
    message = str(failure.value)
    assert "the trial 'the bad one' failed (KeyError: 'method')" in message
    assert str(tmp_path / bad.key / "log.txt") in message
    assert (tmp_path / bad.key / "log.txt").is_file()
    assert isinstance(failure.value.__cause__, KeyError)
    assert stored(good, tmp_path)
    assert stored(bad, tmp_path) is None
    assert performed == [good.title, "the bad one"]


def test_error_includes_the_message_of_a_user_error(world, tmp_path):
    bad = tiny_arm(world, changes={"eval": {"prior": "mini:nonsense"}})
    with pytest.raises(SdftError, match=r"the trial .* failed \(mini:nonsense: there is no such skill"):
        run_trials([bad], tmp_path, 1, "pool")


def test_default_is_one_worker_per_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5})
    assert default_workers() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert default_workers() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert default_workers() == 1


def test_default_is_one_worker_on_an_accelerator(monkeypatch):
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert default_workers() == 1
