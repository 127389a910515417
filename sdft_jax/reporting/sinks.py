"""Sinks for the metrics of a run: JSON lines, TensorBoard, W&B and Trackio."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from etils import epath

from sdft_jax.config.settings import ReportConfig
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import open_replacement, read_json_lines, write_errors, write_text

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

    A sink that fails does not end the run: the failure is printed once. A file keeps what it could not write,
    and writes it as soon as it can; a file that is removed or renamed meanwhile is written again.

    Args:
        config: the sinks in addition to metrics.jsonl and evaluations.jsonl, which are always written.
        output: directory of the run; must exist.
        restored_step: the step that the run resumes from, -1 for a new run; later rows are dropped.
        run_config: the configuration that W&B and Trackio show with the run.
        evaluated: False if the evaluation at `restored_step` will be made again.
        warn: prints the failure of a sink, and the number of damaged rows that a log of the resumed run has.

    Raises:
        SdftError: W&B or Trackio is enabled but not installed, or a log is a directory.
    """
    metrics: list[Sink] = []
    evaluations: list[Sink] = []
    with contextlib.ExitStack() as stack:

        def add(sink: Sink | None, *lists: list[Sink]) -> None:
            if sink is None:
                return
            lasting = _lasting(sink, warn)
            stack.callback(lasting.close)
            for sinks in lists:
                sinks.append(lasting)

        directory = Path(output)
        add(jsonl_sink(directory / METRICS, restored_step, warn), metrics)
        last = restored_step if evaluated else restored_step - 1
        add(jsonl_sink(directory / EVALUATIONS, last, warn), evaluations)
        if config.tensorboard:
            events = directory / "tensorboard"
            sink = _opened(str(events), lambda: tensorboard_sink(events, restored_step), warn)
            add(sink, metrics, evaluations)
        if config.wandb:
            open_wandb = functools.partial(wandb_sink, config.wandb, directory, run_config or {})
            add(_opened("W&B", open_wandb, warn), metrics, evaluations)
        if config.trackio:
            open_trackio = functools.partial(trackio_sink, config.trackio, directory, run_config or {})
            add(_opened("Trackio", open_trackio, warn), metrics, evaluations)
        yield Sinks(
            lambda step, numbers: _write_all(metrics, step, numbers),
            lambda step, numbers: _write_all(evaluations, step, numbers),
        )


def _opened(name: str, make: Callable[[], Sink], warn: Warn) -> Sink | None:
    """Return a sink, or print that it cannot be opened and return None."""
    try:
        return make()
    except SdftError:
        raise
    except Exception as error:  # a service raises exceptions of its own types
        warn(f"{name} cannot be written ({reason(error)}); the run continues without it.")
        return None


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
    if restored_step > 0 and damaged:
        warn(f"{path}: {damaged} damaged rows were dropped.")
    elif restored_step > 0 and not rows and not _is_empty(path):
        warn(f"{path} holds no rows of the steps before {restored_step + 1}: it begins again.")
    with write_errors(path, "fix or remove it"), open_replacement(path, "w+") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows if row["step"] <= restored_step)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal file
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        file.write(json.dumps({"step": step, **finite}) + "\n")
        file.flush()
        file = _named(file, path)

    return Sink(str(path), write, lambda: file.close())


def _is_empty(path: Path) -> bool:
    """Return True for an empty file, such as a log that no row has been written to."""
    return path.is_file() and not path.stat().st_size


def _named(file: IO[str], path: Path) -> IO[str]:
    """Return the open file if it still has its name, or else a copy that has the name."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    with open_replacement(path, "w+") as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy)
    file.close()
    return copy


def read_jsonl(path: Path | epath.Path) -> list[dict[str, Any]]:
    """Return the intact rows of a log of a run; none if there is no such file."""
    return _read_log(path)[0]


def _read_log(path: Path | epath.Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows that are objects with a step, and the number of all others."""
    if not path.is_file():
        return [], 0
    rows, damaged = read_json_lines(path)
    intact = [row for row in rows if type(row.get("step")) is int and 0 <= row["step"] < 1 << 31]
    return intact, damaged + len(rows) - len(intact)


def tensorboard_sink(directory: Path, restored_step: int = 0) -> Sink:
    """Return a sink that writes TensorBoard event files; TensorBoard hides those after `restored_step`.

    tensorboardX's own writer has a thread that ends at the first error, and then a queue that nobody empties.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    def open_file() -> Any:
        directory.mkdir(parents=True, exist_ok=True)
        return EventsWriter(str(directory / "events"))

    events = open_file()
    if restored_step > 0:
        events.write_event(Event(step=restored_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal events
        if not any(directory.glob("events.*")):  # removed meanwhile
            events = open_file()
        for name, value in metrics.items():
            events.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
        events.flush()

    return Sink(str(directory), write, lambda: events.close())


def require_services(config: ReportConfig) -> None:
    """Raise SdftError if the package of a service that the configuration enables is not installed."""
    for name in SERVICES:
        if project := getattr(config, name):
            _require(name, project)


SERVICES = ("wandb", "trackio")
"""Keys of `report` that name a project of a service: also the names of their packages."""


def _require(package: str, project: str) -> Any:
    """Return the package of a service. Raises SdftError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise SdftError(
            f"report.{package}={project!r} requires the package {package}, which is not installed: run "
            f"pip install {package}, or leave report.{package} empty."
        ) from None


def wandb_sink(project: str, directory: Path, run_config: Mapping[str, Any]) -> Sink:
    """Return a sink that logs to a W&B run; a run that resumes in `directory` continues the same W&B run.

    Raises:
        SdftError: W&B is not installed.
    """
    wandb = _require("wandb", project)
    run = wandb.init(
        project=project,
        id=_identity(directory / "wandb.id"),
        resume="allow",
        dir=str(directory),
        name=directory.name,
        config=dict(run_config),
    )
    return Sink("W&B", lambda step, metrics: run.log(dict(metrics), step=step), run.finish)


def trackio_sink(project: str, directory: Path, run_config: Mapping[str, Any]) -> Sink:
    """Return a sink that logs to a Trackio run; a run that resumes in `directory` continues the same one.

    Trackio identifies a run by its name. It stores the metrics on this machine unless its environment
    variables name a Space or a server. Steps that a resumed run repeats are there twice, with equal values.

    Raises:
        SdftError: Trackio is not installed.
    """
    trackio = _require("trackio", project)
    name = f"{directory.name}-{_identity(directory / 'trackio.id')}"
    run = trackio.init(project=project, name=name, resume="allow", config=dict(run_config))
    return Sink("Trackio", lambda step, metrics: run.log(dict(metrics), step=step), run.finish)


def _identity(file: Path) -> str:
    """Return the identity of a service's run, which the run directory keeps; a damaged one is replaced."""
    identity = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
    if not re.fullmatch(r"[\w-]{1,64}", identity):
        identity = uuid.uuid4().hex[:12]
        write_text(file, identity)
    return identity
