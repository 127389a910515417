"""The console output of one process: plain text, headings, tables and bars, or nothing."""

import io

import jax
import pytest
from rich.console import Console

from sdft_jax.reporting import progress
from sdft_jax.reporting.reporter import SILENT, Reporter, process_reporter
from sdft_jax.reporting.tables import summary_table

PATH = "runs/[bold]a[/]/[/b] 1.5"
"""A text that is not valid markup, and that highlighting would color."""


def reporter_of(**options) -> Reporter:
    return Reporter(Console(file=io.StringIO(), width=40, **options))


def text_of(reporter: Reporter) -> str:
    return reporter.console.file.getvalue()


def print_everything(reporter: Reporter) -> None:
    """Call every method that prints."""
    reporter.print("text", summary_table([{"column": 1}], "title"))
    reporter.heading("heading", " more")
    with reporter.bar("reading", 2) as show:
        show(2, "")
    with reporter.training_bar(2, 0) as show_step:
        show_step(2, {"loss": 0.5})
    assert list(reporter.track("ab", "tracking")) == ["a", "b"]


def test_text_is_printed_as_it_is():
    reporter = reporter_of(force_terminal=True)
    reporter.print(PATH, "x" * 60)
    assert text_of(reporter) == f"{PATH}\n{'x' * 60}\n"


def test_title_headings_and_cells_of_a_table_are_printed_as_they_are():
    reporter = reporter_of()
    reporter.print(summary_table([{PATH: PATH}], PATH))
    assert [line.strip() for line in text_of(reporter).splitlines()] == [PATH] * 3


def test_heading_is_bold_up_to_the_text_after_it():
    reporter = reporter_of(force_terminal=True)
    reporter.heading("SDFT", f" of {PATH} and a text longer than a line")
    assert text_of(reporter) == f"\x1b[1mSDFT\x1b[0m of {PATH} and a text longer than a line\n"
    plain = reporter_of()
    plain.heading(PATH)
    assert text_of(plain) == f"{PATH}\n"


def test_reporter_writes_and_prints(monkeypatch):
    monkeypatch.setattr(progress, "BRIEF", 0.0)
    reporter = reporter_of()
    print_everything(reporter)
    assert reporter.writes
    for part in ("text", "title", "heading more", "reading 2/2", "training 2/2, loss 0.5000", "tracking 2/2"):
        assert part in text_of(reporter)


def test_silent_reporter_prints_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "BRIEF", 0.0)
    print_everything(SILENT)
    assert not SILENT.writes
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("process", [0, 1, 3])
def test_only_process_zero_reports(process, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    reporter = process_reporter()
    assert reporter.writes is (process == 0)
    reporter.print("text")
    assert capsys.readouterr().out == ("text\n" if process == 0 else "")
