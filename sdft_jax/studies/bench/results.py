"""What a measurement leaves: a table on the console, and with a directory also JSON, a picture and a page."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.tables import markdown_table, summary_table
from sdft_jax.studies.bench import BENCHES

Case = TypeVar("Case")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measurement, done."""

    name: str
    """Of the benchmark."""
    rows: Sequence[Mapping[str, Any]]
    """Cells by column, as they are to be read."""
    ratios: Sequence[Bar]
    """What the peer takes, divided by what sdft_jax takes: above 1 is better."""
    details: Any
    """Every single number, for the JSON file."""
    machine: str
    """Hardware and versions."""
    conditions: str
    """When, and how busy the machine was."""


RATIO = "ratio"
"""Name in the legend where the group itself says what is divided by what."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several parts of a measurement; fields as those of `Measured`."""

    rows: Sequence[Mapping[str, Any]]
    ratios: Sequence[Bar]
    details: Mapping[str, Any]


def row(what: str, seconds: float, peer: str, theirs: float, **more: str) -> dict[str, Any]:
    """Cells of seconds that something takes, beside those of something else."""
    cells = {"what": what, "seconds": f"{seconds:.3g}", "beside": peer, "its seconds": f"{theirs:.3g}"}
    return cells | {"its / ours": f"{theirs / seconds:.2f}"} | more


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """What all measurements take: `--output`."""
    made = argparse.ArgumentParser(
        prog=f"sdft bench {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--output", metavar="DIR", help=f"also write {name}.json, {name}.png and README.md there"
    )
    return made


def positive(text: str) -> int:
    """A word of the command line as a number of at least 1; ValueError, of which argparse tells, else."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def each_case(
    name: str,
    cases: Sequence[Case],
    measured: Callable[[Case, Callable[[str], None]], tuple[Mapping[str, Any], Sequence[Bar], Any]],
    title: Callable[[Case], str] = str,
) -> tuple[list[Mapping[str, Any]], list[Bar], list[Any]]:
    """Rows, ratios and details of all cases, measured one after the other under a progress bar.

    Args:
        name: of the benchmark.
        cases: what is measured.
        measured: (a case, what to tell of the side that runs) -> its row, ratios and details.
        title: of a case, in the bar.
    """
    rows, ratios, details = list[Mapping[str, Any]](), list[Bar](), list[Any]()
    with bar(name, len(cases)) as show:
        for done, case in enumerate(cases):
            show(done, title(case))
            row, own, each = measured(case, functools.partial(_tell, show, done, title(case)))
            rows.append(row)
            ratios += own
            details.append(each)
        show(len(cases), "")
    return rows, ratios, details


def _tell(show: Callable[[int, str], None], done: int, heading: str, side: str) -> None:
    show(done, f"{heading}: {side}")


def conditions() -> str:
    """Date and load, asked before the measurement itself makes load."""
    day, loads = time.strftime("%Y-%m-%d"), os.getloadavg()
    return f"{day}, load average {loads[0]:.1f} (1 min) and {loads[2]:.1f} (15 min) before it began"


def publish(measured: Measured, output: str | None) -> None:
    """Print the table; with a directory, write NAME.json, NAME.png and README.md of all that lie there."""
    console, told = Console(), f"{measured.machine}; {measured.conditions}"
    console.print(summary_table(measured.rows, BENCHES[measured.name]))
    console.print(told, highlight=False)
    if output is None:
        return
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    report = {
        "name": measured.name,
        "measured on": told,
        "rows": list(measured.rows),
        "details": measured.details,
    }
    (directory / f"{measured.name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    picture = directory / f"{measured.name}.png"
    plot_bars(measured.ratios, picture, f"Measured on {told}.", y_label="the peer's, divided by sdft_jax's")
    page = directory / "README.md"
    page.write_text(_page(directory), encoding="utf-8")
    for path in (picture, page):
        console.print(str(path), highlight=False, soft_wrap=True)


def _page(directory: Path) -> str:
    lines = [
        "# Measured",
        "",
        "Written by `sdft bench NAME --output DIR`; sdft_jax/studies/bench/README.md has the conditions.",
        "",
    ]
    for name, what in BENCHES.items():
        file = directory / f"{name}.json"
        if not file.is_file():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        lines += [
            f"## `sdft bench {name}`",
            "",
            f"{what[0].upper()}{what[1:]}.",
            "",
            *markdown_table(found["rows"]),
        ]
        lines += ["", f"Measured on {found['measured on']}.", "", f"![Ratios]({name}.png)", ""]
    return "\n".join(lines)
