"""The console table and the Markdown table have one column per key."""

import io

from rich.console import Console

from sdft_jax.reporting import tables


def test_summary_table_has_a_column_per_key():
    rows = [
        {"": "base", "new": 0.25, "old": 0.5},
        {"": "[SDFT]", "new": 0.75, "old": 0.5, "KL to base": 0.125},
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.summary_table(rows, "Accuracy"))
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    assert ["Accuracy"] in lines
    assert ["base", "0.250", "0.500", "–"] in lines
    assert ["[SDFT]", "0.750", "0.500", "0.125"] in lines


def test_markdown_table_has_a_column_per_key():
    rows = [{"": "base", "new": 0.25}, {"": "SDFT", "KL to base": "0.1"}]
    assert tables.markdown_table(rows) == [
        "|  | new | KL to base |",
        "| --- | --- | --- |",
        "| base | 0.25 | – |",
        "| SDFT | – | 0.1 |",
    ]


def test_narrow_terminal_cuts_nothing_off():
    console = Console(file=io.StringIO(), width=12)
    console.print(tables.summary_table([{"": "base", "new": 0.123, "old": 0.456}], ""))
    text = console.file.getvalue()
    assert "…" not in text
    assert sorted(text.replace("\n", "").replace(" ", "")) == sorted("newoldbase0.1230.456")
