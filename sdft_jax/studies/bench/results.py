"""Output of a benchmark: a table on the console and, with `--output`, also JSON, a plot and a README."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json, write_text
from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.stream import make_console
from sdft_jax.reporting.tables import markdown_table, summary_table
from sdft_jax.studies.bench import BENCHES

Case = TypeVar("Case")


@dataclasses.dataclass(frozen=True)
class Measured:
    """The results of a benchmark."""

    name: str
    """The name of the benchmark."""
    rows: Sequence[Mapping[str, Any]]
    """The table rows: column -> formatted cell."""
    ratios: Sequence[Bar]
    """The peer's time or memory divided by that of sdft_jax; above 1, sdft_jax is better."""
    details: Any
    """All measured numbers, for the JSON file."""
    machine: str
    """The hardware and the versions of libraries."""
    conditions: str
    """The date and the load average before the run."""


RATIO = "ratio"
"""The legend entry for bars whose group label already names both quantities."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The results of one part of a benchmark; the fields are those of `Measured`."""

    rows: Sequence[Mapping[str, Any]]
    ratios: Sequence[Bar]
    details: Mapping[str, Any]


def row(what: str, seconds: float, peer: str, peer_seconds: float, **more: str) -> dict[str, Any]:
    """Return the table cells that compare the seconds of `what` with those of `peer`."""
    cells = {"what": what, "seconds": f"{seconds:.3g}", "beside": peer, "its seconds": f"{peer_seconds:.3g}"}
    return cells | {"its / ours": f"{peer_seconds / seconds:.2f}"} | more


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with the option that all benchmarks share, `--output`."""
    options = argparse.ArgumentParser(
        prog=f"sdft bench {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--output", metavar="DIR", help=f"also write {name}.json, {name}.png and README.md to this directory"
    )
    return options


LARGEST = 1 << 20
"""Maximum number of rows, tokens, rounds or layers of a measurement."""


def natural(text: str, least: int = 0) -> int:
    """Parse a command-line argument as an integer from `least` to `LARGEST`.

    Raises:
        argparse.ArgumentTypeError: it is not such an integer; argparse prints it and exits with code 2.
    """
    if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or not least <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not an integer from {least} to {LARGEST:,}")
    return int(text)


def positive(text: str) -> int:
    """Parse a command-line argument as `natural`, of at least 1."""
    return natural(text, 1)


def shape(text: str, count: int) -> tuple[int, ...]:
    """Parse a command-line argument such as 8x64x64 as `count` positive integers.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    parts = text.split("x")
    if len(parts) != count:
        example = "x".join(["8"] * count)
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not {count} integers, such as {example}")
    return tuple(map(positive, parts))


def each_case(
    name: str,
    cases: Sequence[Case],
    measure: Callable[[Case, Callable[[str], None]], tuple[Mapping[str, Any], Sequence[Bar], Any]],
    title: Callable[[Case], str] = str,
) -> tuple[list[Mapping[str, Any]], list[Bar], list[Any]]:
    """Measure the cases one after another, with a progress bar, and return their rows, ratios and details.

    Args:
        name: the name of the benchmark.
        cases: the cases to measure.
        measure: (case, report) -> row, ratios and details of the case; calling `report(text)` shows what is
            running.
        title: returns the text for a case in the progress bar.
    """
    rows, ratios, details = list[Mapping[str, Any]](), list[Bar](), list[Any]()
    with bar(name, len(cases)) as show:
        for done, case in enumerate(cases):
            show(done, title(case))
            row, case_ratios, case_details = measure(
                case, functools.partial(_report, show, done, title(case))
            )
            rows.append(row)
            ratios += case_ratios
            details.append(case_details)
        show(len(cases), "")
    return rows, ratios, details


def _report(show: Callable[[int, str], None], done: int, heading: str, side: str) -> None:
    show(done, f"{heading}: {side}")


def conditions() -> str:
    """Return the date and the load average; call it before the benchmark itself adds load."""
    day, loads = time.strftime("%Y-%m-%d"), os.getloadavg()
    return f"{day}, load average {loads[0]:.1f} (1 min) and {loads[2]:.1f} (15 min) before the run"


def publish(measured: Measured, output: str | None) -> None:
    """Print the table and, with `output`, write NAME.json, NAME.png and a README.md of all results in it."""
    console, measured_on = make_console(), f"{measured.machine}; {measured.conditions}"
    console.print(summary_table(measured.rows, BENCHES[measured.name]))
    console.print(measured_on, highlight=False)
    if output is None:
        return
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    report = {
        "name": measured.name,
        "measured on": measured_on,
        "rows": list(measured.rows),
        "details": measured.details,
    }
    write_text(directory / f"{measured.name}.json", json.dumps(report, indent=1) + "\n")
    plot = directory / f"{measured.name}.png"
    plot_bars(measured.ratios, plot, f"Measured on {measured_on}.", y_label="peer / sdft_jax")
    page = directory / "README.md"
    write_text(page, _page(directory))
    for path in (plot, page):
        console.print(str(path), highlight=False, soft_wrap=True)


def _read_report(file: Path) -> dict[str, Any]:
    """Return an earlier result. Raises SdftError if it is damaged."""
    remedy = "remove it, or measure again"
    report = read_json(file, remedy)
    rows = report.get("rows")
    if (
        not isinstance(rows, list)
        or not all(isinstance(row, dict) for row in rows)
        or "measured on" not in report
    ):
        raise SdftError(f"{file} is not a result of sdft bench: {remedy}.")
    return report


def _page(directory: Path) -> str:
    lines = [
        "# Benchmark results",
        "",
        "Written by `sdft bench NAME --output DIR`; see sdft_jax/studies/bench/README.md for the benchmarks.",
        "",
    ]
    for name, description in BENCHES.items():
        file = directory / f"{name}.json"
        if not file.is_file():
            continue
        report = _read_report(file)
        lines += [
            f"## `sdft bench {name}`",
            "",
            f"{description[0].upper()}{description[1:]}.",
            "",
            *markdown_table(report["rows"]),
        ]
        lines += ["", f"Measured on {report['measured on']}.", "", f"![Ratios]({name}.png)", ""]
    return "\n".join(lines)
