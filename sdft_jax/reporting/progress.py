"""Progress bars: live on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


BRIEF = 5.0
"""Seconds of work that is not worth a line of its own where there is no live bar."""


_LIVE: list[Progress] = []
"""The one display that rich can keep live on a terminal, if there is one now."""


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


def track(
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
