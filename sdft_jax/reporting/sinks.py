"""What a run tells: metrics into files and services, progress and tables on the console, sampled rollouts.

Only process 0 reports: what writes or shows bars does nothing with `active=False`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config.settings import ReportConfig
from sdft_jax.errors import SdftError

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


@dataclasses.dataclass(frozen=True)
class Sink:
    """Somewhere that metrics go."""

    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Sinks:
    """Where a run's numbers go."""

    write: Callable[[int, Mapping[str, float]], None]
    """Metrics of a step."""
    write_evaluation: Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def open_sinks(
    config: ReportConfig,
    output: str | os.PathLike[str],
    restored_step: int = 0,
    run_config: Mapping[str, Any] | None = None,
    active: bool = True,
) -> Iterator[Sinks]:
    """Writes to all that the configuration asks for; closed with the context.

    Args:
        config: which sinks besides metrics.jsonl and evaluations.jsonl in `output`.
        output: directory of the run, which exists.
        restored_step: step that the run resumes from, what was written after it is dropped; -1 for a new run.
        run_config: shown by W&B beside the run.
        active: False on all processes but 0.

    Raises:
        SdftError: W&B is asked for and not installed.
    """
    metrics: list[Sink] = []
    evaluations: list[Sink] = []
    with contextlib.ExitStack() as stack:

        def add(sink: Sink, *lists: list[Sink]) -> None:
            stack.callback(sink.close)
            for sinks in lists:
                sinks.append(sink)

        directory = Path(output)
        if active:
            add(jsonl_sink(directory / METRICS, restored_step), metrics)
            add(jsonl_sink(directory / EVALUATIONS, restored_step), evaluations)
        if active and config.tensorboard:
            add(tensorboard_sink(directory / "tensorboard", restored_step), metrics, evaluations)
        if active and config.wandb:
            add(wandb_sink(config.wandb, directory, run_config or {}), metrics, evaluations)
        yield Sinks(
            lambda step, numbers: _write_all(metrics, step, numbers),
            lambda step, numbers: _write_all(evaluations, step, numbers),
        )


def _write_all(sinks: Sequence[Sink], step: int, metrics: Mapping[str, float]) -> None:
    numbers = {name: float(value) for name, value in metrics.items()}
    for sink in sinks:
        sink.write(step, numbers)


def jsonl_sink(path: Path, restored_step: int = 0) -> Sink:
    """One JSON object a line, first key `step`; a number that is not finite is null.

    Lines after `restored_step`, and a last line that was cut short, are dropped first, so that the file of
    a resumed run is that of an uninterrupted one.
    """
    kept = [row for row in read_jsonl(path) if row["step"] <= restored_step] if path.exists() else []
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    temporary.replace(path)
    file = path.open("a", encoding="utf-8")

    def write(step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        file.write(json.dumps({"step": step, **finite}) + "\n")
        file.flush()

    return Sink(write, file.close)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file up to the first line that a killed process left unfinished."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def tensorboard_sink(directory: Path, restored_step: int = 0) -> Sink:
    """TensorBoard event files; what was written after `restored_step` is hidden."""
    writer = importlib.import_module("tensorboardX").SummaryWriter(
        str(directory), purge_step=restored_step + 1 if restored_step else None
    )

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return Sink(write, writer.close)


def require_wandb(project: str) -> Any:
    """The wandb module. Raises SdftError when it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise SdftError(
            f"report.wandb={project!r} needs W&B, which is not installed: pip install 'sdft_jax[wandb]', or "
            "leave report.wandb empty."
        ) from None


def wandb_sink(project: str, directory: Path, run_config: Mapping[str, Any]) -> Sink:
    """A W&B run, continued when the run in `directory` is. Raises SdftError when W&B is not installed."""
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
    return Sink(lambda step, metrics: run.log(dict(metrics), step=step), run.finish)
