"""Tables for the console and for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


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
