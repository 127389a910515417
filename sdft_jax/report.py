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
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sdft_jax.errors import SdftError
from sdft_jax.settings import ReportConfig

Item = TypeVar("Item")

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"

BRIEF = 5.0
"""Seconds of work that is not worth a line of its own where there is no live bar."""

_LIVE: list[Progress] = []
"""The one display that rich can keep live on a terminal, if there is one now."""


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


@dataclasses.dataclass(frozen=True)
class RolloutRow:
    """One sampled completion, token by token."""

    prompt: str
    completion: str
    tokens: Sequence[str]
    divergence: Sequence[float]
    """KL between student and teacher at each token."""
    log_ratio: Sequence[float]
    """log T - log S of each token: positive where the teacher likes it better."""


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


@contextlib.contextmanager
def bar(
    description: str,
    total: int | None,
    completed: int = 0,
    active: bool = True,
    console: Console | None = None,
) -> Iterator[Callable[[int, str], None]]:
    """Progress towards `total`; yields `show(completed, text)`.

    On a terminal or in a notebook a live bar; elsewhere plain lines, ever more seldom: at most about a
    hundred even in a run of days.
    """
    console = console or Console()
    if not active:
        yield lambda completed, text: None
    elif (console.is_terminal and not console.is_dumb_terminal) or console.is_jupyter:
        with _live_display(console) as live:
            task = live.add_task(description, total=total, completed=completed, text="")
            yield lambda completed, text: live.update(task, completed=completed, text=text)
            if live.tasks[0].id != task:
                live.remove_task(task)
    else:
        yield _plain_lines(description, total, completed, console)


@contextlib.contextmanager
def _live_display(console: Console) -> Iterator[Progress]:
    """The display that is already live, so that an evaluation's bar stands below that of training."""
    if _LIVE:
        yield _LIVE[0]
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as live:
        _LIVE.append(live)
        try:
            yield live
        finally:
            _LIVE.clear()


def _plain_lines(
    description: str, total: int | None, start: int, console: Console
) -> Callable[[int, str], None]:
    began = time.monotonic()
    wait = 10.0

    def show(completed: int, text: str) -> None:
        nonlocal wait
        elapsed = time.monotonic() - began
        if elapsed < wait and (completed != total or elapsed < BRIEF):
            return
        wait = max(elapsed * 1.1, elapsed + 10)
        left = elapsed / max(completed - start, 1) * (total - completed) if total else 0
        parts = [f"{description} {completed}/{total or '?'}", text, f"{_duration(elapsed)} elapsed"]
        parts += [f"{_duration(left)} left"] if left else []
        console.print(", ".join(filter(None, parts)), markup=False, highlight=False, soft_wrap=True)

    return show


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def training_bar(
    total: int, start: int = 0, active: bool = True, console: Console | None = None
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Progress of training; yields `show(step, metrics)`, which reads `loss` and `tokens_per_second`."""
    with bar("training", total, start, active, console) as show:

        def show_metrics(step: int, metrics: Mapping[str, float]) -> None:
            parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
            if "tokens_per_second" in metrics:
                parts.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
            show(step, ", ".join(parts))

        yield show_metrics


def progress(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    active: bool = True,
    console: Console | None = None,
) -> Iterator[Item]:
    """The items, with a progress bar over them."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total, active=active, console=console) as show:
        for done, item in enumerate(items):
            yield item
            show(done + 1, "")


def summary_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Table for the console; its columns are the keys of the rows, in order of appearance.

    Numbers have three digits behind the point; what is missing is a dash.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    return table


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the same table for a page; cells as they are."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(str(row.get(key, "–")) for key in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write_rollouts(
    directory: str | os.PathLike[str], step: int, rows: Sequence[RolloutRow], active: bool = True
) -> None:
    """Rollouts of one step as STEP.jsonl and, to be read, STEP.txt; a step done again overwrites its own."""
    if not active:
        return
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, **dataclasses.asdict(row)}, ensure_ascii=False) for row in rows]
    (path / f"{step:06d}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    text = "\n".join(rollout_text(row, f"step {step}, rollout {n + 1}") for n, row in enumerate(rows))
    (path / f"{step:06d}.txt").write_text(text, encoding="utf-8")


def rollout_text(row: RolloutRow, title: str, most: int = 20) -> str:
    """Prompt, completion, and the tokens on which student and teacher differ most, in their order."""
    by_size = sorted(range(len(row.tokens)), key=lambda i: -row.divergence[i])[:most]
    scale = max((row.divergence[i] for i in by_size), default=0.0) or 1.0
    total = sum(row.divergence)
    lines = [f"=== {title} ===", "--- prompt", row.prompt, "--- completion", row.completion]
    lines += [f"--- {len(by_size)} of {len(row.tokens)} tokens, most divergent (sum of all: {total:.3f})"]
    lines += ["    at       KL  logT-logS  token"]
    for i in sorted(by_size):
        blocks = "#" * round(20 * row.divergence[i] / scale)
        number = f"{i:6d} {row.divergence[i]:8.4f} {row.log_ratio[i]:+10.4f}"
        lines.append(f"{number}  {row.tokens[i]!r:<20} {blocks}".rstrip())
    return "\n".join(lines) + "\n"


def hardware() -> str:
    """One line for captions: devices, CPU and jax version."""
    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = f"{len(devices)} x {devices[0].device_kind}"
    return f"{device}; host CPU {_cpu_model()}, {cores} cores; jax {jax.__version__}"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
