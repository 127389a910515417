"""What a benchmark leaves: a table on the console, and with an output directory also JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sdft_jax.figures import Bar, plot_bars
from sdft_jax.report import summary_table


def publish(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    measured_on: str,
    output: str | None,
    bars: Mapping[str, Sequence[Bar]],
) -> None:
    """Print rows as a table; write NAME.json and a picture for each kind of bars into `output`.

    Args:
        name: of the benchmark.
        rows: cells by column.
        measured_on: hardware and versions.
        output: directory, or None.
        bars: unit of the values, such as `seconds a step` -> bars; the picture is NAME-<first word>.png.
    """
    console = Console()
    console.print(summary_table(rows, name))
    console.print(measured_on, highlight=False)
    if output is None:
        return
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    report = {"measured on": measured_on, "rows": list(rows)}
    (directory / f"{name}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    for unit, drawn in bars.items():
        path = directory / f"{name}-{unit.split()[0]}.png"
        plot_bars(drawn, path, f"Measured on {measured_on}.", y_label=unit)
        console.print(str(path), highlight=False, soft_wrap=True)
