"""Runs trials that have not been run yet: beside each other on the cores of a CPU, in turn on an accelerator.

Models this small leave a second core idle, so a process for each core is nearly twice as fast as one for all.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from sdft_jax.errors import SdftError
from sdft_jax.reporting.progress import bar
from sdft_jax.studies.lab.trials import Result, Trial, perform, stored


def run_trials(trials: Sequence[Trial], directory: Path, workers: int, description: str) -> list[Result]:
    """Results in the order of the trials; those that are not stored yet are run.

    Args:
        trials: may repeat; equal ones are run once.
        directory: where results are kept.
        workers: processes; 1 runs everything in this one.
        description: of the progress bar.

    Raises:
        SdftError: a trial failed; its log is named, and what has finished is kept.
    """
    missing = {trial.key: trial for trial in trials if stored(trial, directory) is None}
    if missing:
        with bar(description, len(missing)) as show:
            _run(list(missing.values()), directory, workers, show)
    return [_result(trial, directory) for trial in trials]


def _run(trials: Sequence[Trial], directory: Path, workers: int, show) -> None:
    if workers == 1:
        for done, trial in enumerate(trials):
            show(done, trial.title)
            _attempt(trial, directory)
        show(len(trials), "")
        return
    cores = multiprocessing.get_context("spawn").Queue()
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for _, core in zip(range(workers), itertools.cycle(mine), strict=False):
        cores.put(core)
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _take_core, (cores,)
    ) as pool:
        futures = {pool.submit(_attempt, trial, directory): trial for trial in trials}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(futures)):
                future.result()
                show(done + 1, futures[future].title)
        except BrokenProcessPool:
            raise SdftError(
                "a worker was killed, perhaps for want of memory: give fewer --workers; what has finished is "
                "kept."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_core(cores) -> None:
    """Bind this process to a core of its own before XLA counts the cores, and end it with its parent."""
    core = cores.get()
    if core is not None:
        os.sched_setaffinity(0, {core})
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A parent that is killed cannot stop its workers, and they would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(trial: Trial, directory: Path) -> None:
    from sdft_jax.training.compile_cache import cache_compilations

    cache_compilations()
    try:
        perform(trial, directory)
    except Exception as error:
        what = str(error) if isinstance(error, SdftError) else f"{type(error).__name__}: {error}"
        raise SdftError(
            f"the trial {trial.title} failed ({what}): see {directory / trial.key / 'log.txt'}; what has "
            "finished is kept."
        ) from error


def _result(trial: Trial, directory: Path) -> Result:
    result = stored(trial, directory)
    assert result is not None, trial.title
    return result


def default_workers() -> int:
    """A process for each core where JAX has only the CPU (at most 8), else one."""
    import jax

    if jax.default_backend() != "cpu" or not hasattr(os, "sched_getaffinity"):
        return 1
    return min(len(os.sched_getaffinity(0)), 8)
