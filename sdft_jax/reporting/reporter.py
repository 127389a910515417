"""The console output of a process: messages and progress bars on the first process, nothing on others."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from rich.console import Console
from rich.text import Text

from sdft_jax.errors import reason
from sdft_jax.reporting.progress import bar, track, training_bar
from sdft_jax.reporting.stream import make_console

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Reporter:
    """A console, with functions for everything that a run prints."""

    console: Console
    """Prints nothing if it is quiet."""
    writes: bool = True
    """True if this process also writes the files of a run: metrics, evaluations, rollouts, results."""
    before_item: Callable[[], None] = lambda: None
    """Called before each item of `track`; an exception ends the work on the items."""

    def print(self, *renderables: Any) -> None:
        """Print tables, or text without markup, highlighting and line breaks."""
        for renderable in renderables:
            plain = isinstance(renderable, str)
            self.console.print(renderable, markup=False, emoji=False, highlight=False, soft_wrap=plain)

    @contextlib.contextmanager
    def tolerating(self, name: object) -> Iterator[None]:
        """Print an exception of the block in one sentence: a picture or a log must not end a run.

        Args:
            name: what the block writes, such as a file.
        """
        try:
            yield
        except Exception as error:  # libraries for pictures raise exceptions of many types
            self.print(f"{name} cannot be written ({reason(error)}); the run continues without it.")

    def heading(self, text: str, more: str = "") -> None:
        """Print `text` in bold, followed by `more`; neither is markup."""
        self.console.print(Text.assemble((text, "bold"), more), soft_wrap=True)

    def bar(
        self, description: str, total: int | None
    ) -> contextlib.AbstractContextManager[Callable[[int, str], None]]:
        """Return a progress bar as a context, which yields `show(completed, text)`."""
        return bar(description, total, console=self.console)

    def training_bar(
        self, total: int, start: int
    ) -> contextlib.AbstractContextManager[Callable[[int, Mapping[str, float]], None]]:
        """Return a progress bar as a context, which yields `show(step, metrics)`."""
        return training_bar(total, start, console=self.console)

    def track(self, items: Iterable[Item], description: str) -> Iterator[Item]:
        """Yield the items with a progress bar over them."""
        for item in track(items, description, console=self.console):
            self.before_item()
            yield item


SILENT = Reporter(Console(quiet=True), writes=False)
"""A reporter that prints and writes nothing, for all processes but the first."""


def process_reporter() -> Reporter:
    """Return a reporter on the first process, and a silent one on all others."""
    return Reporter(make_console()) if jax.process_index() == 0 else SILENT
