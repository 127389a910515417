"""One training, or one measurement of a base model, as a file that says what it was and what it gave.

A trial is plain data. Its result is kept under a name made from that data, so that it is never run twice,
whichever experiment asks for it and however often the lab is interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What is to be done."""

    work: str
    """`arm`: train and measure; `base`: measure the base model; `cost`: compile and time a step."""
    settings: Mapping[str, Any]
    """Everything that the result depends on, as JSON."""
    title: str
    """What it is called while it runs; the result does not depend on it."""

    @property
    def key(self) -> str:
        """Name of its directory."""
        text = json.dumps([self.work, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def stored(trial: Trial, directory: Path) -> Result | None:
    """What the trial gave, if it was run before."""
    file = directory / trial.key / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def perform(trial: Trial, directory: Path) -> None:
    """Run the trial and keep its result; what it prints goes into its log, and its models are deleted."""
    place = directory / trial.key
    place.mkdir(parents=True, exist_ok=True)
    (place / "trial.json").write_text(json.dumps(dataclasses.asdict(trial), indent=1), encoding="utf-8")
    with (
        (place / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        result = _work(trial.work)(trial.settings, place / "run")
    temporary = place / ".result.json.tmp"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(place / "result.json")
    shutil.rmtree(place / "run", ignore_errors=True)


def _work(name: str) -> Callable[[Mapping[str, Any], Path], Result]:
    from sdft_jax.studies.lab import work  # here, so that the list of trials can be made without jax

    return getattr(work, name)
