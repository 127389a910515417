"""Runs trials that have no stored result: in parallel on the cores of a CPU, one at a time on an accelerator.

Training such a small model leaves a second core idle, so one process per core is nearly twice as fast as one
process for all cores.
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
    """Run the trials that have no stored result, and return all results in the order of `trials`.

    Args:
        trials: trials to run; equal trials run once.
        directory: directory of the stored results.
        workers: number of processes; 1 runs all trials in this process.
        description: label of the progress bar.

    Raises:
        SdftError: a trial failed (the message names its log) or a worker process was killed; the results of
            finished trials are stored.
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
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for _, core in zip(range(workers), itertools.cycle(available), strict=False):
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
                "a worker process was killed, perhaps because memory ran out: run again with fewer "
                "--workers; finished trials are reused."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_core(cores) -> None:
    """Pin this process to one core before XLA counts the cores, and exit when the parent process does."""
    core = cores.get()
    if core is not None:
        os.sched_setaffinity(0, {core})
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Exit when the parent process ends: without this, workers of a killed parent would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(trial: Trial, directory: Path) -> None:
    from sdft_jax.training.compile_cache import enable_compile_cache

    enable_compile_cache()
    try:
        perform(trial, directory)
    except Exception as error:
        reason = str(error) if isinstance(error, SdftError) else f"{type(error).__name__}: {error}"
        raise SdftError(
            f"the trial {trial.title!r} failed ({reason}): see its log, {directory / trial.key / 'log.txt'}; "
            "finished trials are reused by the next run."
        ) from error


def _result(trial: Trial, directory: Path) -> Result:
    result = stored(trial, directory)
    assert result is not None, trial.title
    return result


def default_workers() -> int:
    """Return one worker per core, at most 8, if JAX has only the CPU, else 1."""
    import jax

    if jax.default_backend() != "cpu" or not hasattr(os, "sched_getaffinity"):
        return 1
    return min(len(os.sched_getaffinity(0)), 8)
