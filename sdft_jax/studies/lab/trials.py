"""Trials: single trainings and measurements whose settings and results are stored as files.

A trial is plain data. Its result is stored under a key computed from that data, so a trial runs only once,
even if several experiments use it or the lab is interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sdft_jax.files import read_record, write_text
from sdft_jax.files.hashing import short_digest

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One unit of work, as plain data."""

    work: str
    """The kind of work: `arm` trains and measures, `base` measures the base model, `cost` times one step."""
    settings: Mapping[str, Any]
    """All settings that the result depends on, as JSON-compatible data."""
    title: str
    """The label in progress bars and error messages; the result does not depend on it."""

    @property
    def key(self) -> str:
        """The name of the trial's directory: a hash of `work` and `settings`."""
        text = json.dumps([self.work, self.settings], sort_keys=True)
        return short_digest(text)


def stored(trial: Trial, directory: Path) -> Result | None:
    """Return the stored result of the trial, or None if it has not finished or its result is damaged."""
    return read_record(epath.Path(directory / trial.key / "result.json")) or None


def perform(trial: Trial, directory: Path) -> None:
    """Run the trial and store its result and its output (log.txt); delete the models that it trained."""
    trial_directory = directory / trial.key
    trial_directory.mkdir(parents=True, exist_ok=True)
    write_text(trial_directory / "trial.json", json.dumps(dataclasses.asdict(trial), indent=1))
    log_file = trial_directory / "log.txt"
    if not log_file.is_file():  # such as a named pipe, which opening would wait for
        log_file.unlink(missing_ok=True)
    with (
        log_file.open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        result = _work(trial.work)(trial.settings, trial_directory / "run")
    write_text(trial_directory / "result.json", json.dumps(result))
    shutil.rmtree(trial_directory / "run", ignore_errors=True)


def _work(name: str) -> Callable[[Mapping[str, Any], Path], Result]:
    from sdft_jax.studies.lab import work  # imports jax, which listing trials does not need

    return getattr(work, name)
