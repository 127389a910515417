"""Sinks for the metrics of a run: JSON lines, TensorBoard and W&B."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config.settings import ReportConfig
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import open_replacement, read_json_lines

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


Warn = Callable[[str], None]
"""A function that prints one sentence."""


@dataclasses.dataclass(frozen=True)
class Sink:
    """A destination of metrics: a file or a service."""

    name: str
    """The file or the service, for messages."""
    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Sinks:
    """Functions that write to all open sinks of a run."""

    write: Callable[[int, Mapping[str, float]], None]
    """Write the metrics of a training step."""
    write_evaluation: Callable[[int, Mapping[str, float]], None]
    """Write the metrics of an evaluation at a step."""


NO_SINKS = Sinks(lambda step, numbers: None, lambda step, numbers: None)
"""Sinks that write nothing, for all processes except process 0."""


@contextlib.contextmanager
def open_sinks(
    config: ReportConfig,
    output: str | os.PathLike[str],
    restored_step: int = 0,
    run_config: Mapping[str, Any] | None = None,
    warn: Warn = lambda sentence: None,
    evaluated: bool = True,
) -> Iterator[Sinks]:
    """Open all sinks that the configuration enables, and close them when the context ends.

    A sink that fails while the run is going does not end it: the failure is printed once. A file keeps what
    it could not write, and writes it as soon as it can.

    Args:
        config: the sinks in addition to metrics.jsonl and evaluations.jsonl, which are always written.
        output: directory of the run; must exist.
        restored_step: the step that the run resumes from, -1 for a new run; later rows are dropped.
        run_config: the configuration that W&B shows with the run.
        evaluated: False if the evaluation at `restored_step` will be made again.
        warn: prints the failure of a sink, and the number of damaged rows that a log of the resumed run has.

    Raises:
        SdftError: W&B is enabled but not installed.
    """
    metrics: list[Sink] = []
    evaluations: list[Sink] = []
    with contextlib.ExitStack() as stack:

        def add(sink: Sink, *lists: list[Sink]) -> None:
            lasting = _lasting(sink, warn)
            stack.callback(lasting.close)
            for sinks in lists:
                sinks.append(lasting)

        directory = Path(output)
        add(jsonl_sink(directory / METRICS, restored_step, warn), metrics)
        last = restored_step if evaluated else restored_step - 1
        add(jsonl_sink(directory / EVALUATIONS, last, warn), evaluations)
        if config.tensorboard:
            add(tensorboard_sink(directory / "tensorboard", restored_step), metrics, evaluations)
        if config.wandb:
            add(wandb_sink(config.wandb, directory, run_config or {}), metrics, evaluations)
        yield Sinks(
            lambda step, numbers: _write_all(metrics, step, numbers),
            lambda step, numbers: _write_all(evaluations, step, numbers),
        )


def _lasting(sink: Sink, warn: Warn) -> Sink:
    """Return a sink whose failures are printed, the first of them only, and raise nothing."""
    failures = 0

    def attempt(work: Callable[..., None], *arguments: Any) -> None:
        nonlocal failures
        try:
            work(*arguments)
        except Exception as error:  # a service raises exceptions of its own types
            failures += 1
            if failures == 1:
                warn(f"{sink.name} cannot be written ({reason(error)}); the run continues.")

    return Sink(sink.name, functools.partial(attempt, sink.write), functools.partial(attempt, sink.close))


def _write_all(sinks: Sequence[Sink], step: int, metrics: Mapping[str, float]) -> None:
    numbers = {name: float(value) for name, value in metrics.items()}
    for sink in sinks:
        sink.write(step, numbers)


def jsonl_sink(path: Path, restored_step: int = 0, warn: Warn = lambda sentence: None) -> Sink:
    """Return a sink that writes one JSON object per line, with `step` first and null for NaN and infinity.

    Rows after `restored_step` and an incomplete last line are dropped first. The file of a resumed run is
    therefore the same as that of an uninterrupted run. `warn` receives the number of damaged rows, which are
    dropped too.

    Raises:
        SdftError: the file cannot be created, for example because there is a directory of that name.
    """
    rows, damaged = _read_log(path)
    if damaged and restored_step > 0:
        warn(f"{path}: {damaged} damaged rows were dropped.")
    try:
        with open_replacement(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows if row["step"] <= restored_step)
    except OSError as error:
        raise SdftError(f"{path} cannot be written ({error.strerror}): fix or remove it.") from error

    def write(step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        file.write(json.dumps({"step": step, **finite}) + "\n")
        file.flush()

    return Sink(str(path), write, file.close)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the intact rows of a log of a run; none if there is no such file."""
    return _read_log(path)[0]


def _read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows that are objects with a step, and the number of all others."""
    if not path.is_file():
        return [], 0
    rows, damaged = read_json_lines(path)
    intact = [row for row in rows if type(row.get("step")) is int and 0 <= row["step"] < 1 << 31]
    return intact, damaged + len(rows) - len(intact)


def tensorboard_sink(directory: Path, restored_step: int = 0) -> Sink:
    """Return a sink that writes TensorBoard event files; TensorBoard hides those after `restored_step`."""
    writer = importlib.import_module("tensorboardX").SummaryWriter(
        str(directory), purge_step=restored_step + 1 if restored_step else None
    )

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return Sink(str(directory), write, writer.close)


def require_wandb(project: str) -> Any:
    """Return the wandb module.

    Raises:
        SdftError: W&B is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise SdftError(
            f"report.wandb={project!r} requires W&B, which is not installed: run "
            "pip install wandb, or leave report.wandb empty."
        ) from None


def wandb_sink(project: str, directory: Path, run_config: Mapping[str, Any]) -> Sink:
    """Return a sink that logs to a W&B run; a run that resumes in `directory` continues the same W&B run.

    Raises:
        SdftError: W&B is not installed.
    """
    wandb = require_wandb(project)
    identity = directory / "wandb.id"
    if not identity.exists():
        identity.write_text(uuid.uuid4().hex[:12])
    run = wandb.init(
        project=project,
        id=identity.read_text(),
        resume="allow",
        dir=str(directory),
        name=directory.name,
        config=dict(run_config),
    )
    return Sink("W&B", lambda step, metrics: run.log(dict(metrics), step=step), run.finish)
