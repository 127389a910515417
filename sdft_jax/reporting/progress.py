"""Progress bars: live in a terminal or a notebook, plain lines of text otherwise."""

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

from sdft_jax.reporting.stream import make_console

Item = TypeVar("Item")

BRIEF = 5.0
"""Without a live bar, work that takes less than this many seconds prints no line."""


_LIVE: list[Progress] = []
"""The live display, if there is one; rich supports only one at a time."""


@contextlib.contextmanager
def bar(
    description: str,
    total: int | None,
    completed: int = 0,
    console: Console | None = None,
) -> Iterator[Callable[[int, str], None]]:
    """Show progress towards `total`; yield a function `show(completed, text)` that updates it.

    In a terminal or a notebook, this is a live bar. Otherwise it prints plain lines at increasing intervals,
    at most about a hundred even in a run that takes days.

    Args:
        description: text before the bar.
        total: number of items; None if it is not known.
        completed: number of items completed before the start, by the run that this one resumes.
        console: the destination, which shows nothing if it is quiet; None for standard output.
    """
    console = console or make_console()
    if console.quiet:
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
    """Yield the current live display or a new one, so that nested bars share one display."""
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
    start_time = time.monotonic()
    wait = 10.0

    def show(completed: int, text: str) -> None:
        nonlocal wait
        elapsed = time.monotonic() - start_time
        if elapsed < wait and (completed != total or elapsed < BRIEF):
            return
        wait = max(elapsed * 1.1, elapsed + 10)
        remaining = elapsed / max(completed - start, 1) * (total - completed) if total else 0
        parts = [f"{description} {completed}/{total or '?'}", text, f"{_duration(elapsed)} elapsed"]
        parts += [f"{_duration(remaining)} left"] if remaining else []
        console.print(
            ", ".join(filter(None, parts)), markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    return show


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def training_bar(
    total: int, start: int = 0, console: Console | None = None
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show training progress; yield `show(step, metrics)`, which displays `loss` and `tokens_per_second`."""
    with bar("training", total, start, console) as show:

        def show_metrics(step: int, metrics: Mapping[str, float]) -> None:
            parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
            if "tokens_per_second" in metrics:
                parts.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
            show(step, ", ".join(parts))

        yield show_metrics


def track(
    items: Iterable[Item],
    description: str,
    console: Console | None = None,
) -> Iterator[Item]:
    """Iterate over the items and show a progress bar."""
    total = len(items) if isinstance(items, Sized) else None
    with bar(description, total, console=console) as show:
        for completed, item in enumerate(items, start=1):
            yield item
            show(completed, "")
