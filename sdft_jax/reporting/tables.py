"""Tables for the console and for Markdown pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def summary_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return a table for the console, with one column per key of the rows, in order of first appearance.

    Floating-point numbers have three decimals; a missing value is a dash. In a narrow terminal, cells have
    several lines, and nothing is cut off.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # Text, since paths and names of tasks are not markup.
    table = Table(
        title=Text(title, "table.title"),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    return table


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table with the same columns; a missing value is a dash."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(str(row.get(key, "–")) for key in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
