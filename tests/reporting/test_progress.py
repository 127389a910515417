"""Progress bars: live in a terminal, a few plain lines otherwise, and nothing on a quiet console."""

import io

import pytest
from rich.console import Console

from sdft_jax.reporting import progress


def test_live_bar_shows_loss_throughput_and_remaining_time():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.training_bar(10, start=4, console=console) as show:
        show(5, {"loss": 0.1234, "tokens_per_second": 12345.6})
    text = console.file.getvalue()
    for part in ("training", "5/10", "loss 0.1234", "12,346 tok/s", "0:00:00"):
        assert part in text


def test_nested_bars_are_removed_when_their_context_ends():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.training_bar(2, console=console) as show:
        assert list(progress.track([1, 2], "evaluating [new]", console=console)) == [1, 2]
        show(1, {"loss": 1.0})
    assert "evaluating [new]" in console.file.getvalue()
    last = console.file.getvalue().splitlines()[-2]
    assert "training" in last
    assert "evaluating" not in last
    assert progress._LIVE == []


def test_plain_lines_are_few_and_include_the_last_step(monkeypatch):
    clock = iter(range(0, 10**7, 30))  # each step takes 30 s
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    console = Console(file=io.StringIO(), width=40)
    with progress.training_bar(10_000, console=console) as show:
        for step in range(1, 10_001):
            show(step, {"loss": 0.5, "tokens_per_second": 1000.0})
    lines = console.file.getvalue().splitlines()
    assert 20 < len(lines) < 120
    assert lines[0] == "training 1/10000, loss 0.5000, 1,000 tok/s, 0:30 elapsed, 83:19:30 left"
    assert lines[-1] == "training 10000/10000, loss 0.5000, 1,000 tok/s, 83:20:00 elapsed"


def test_track_yields_all_items_and_counts_them(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 7.0)  # however slow the machine is
    console = Console(file=io.StringIO())
    assert list(progress.track("abc", "reading", console=console)) == ["a", "b", "c"]
    assert console.file.getvalue() == "", "short work prints no line"
    monkeypatch.setattr(progress, "BRIEF", 0.0)
    assert list(progress.track("abc", "reading", console=console)) == ["a", "b", "c"]
    assert console.file.getvalue() == "reading 3/3, 0:00 elapsed\n"
    assert list(progress.track(iter("ab"), "reading", console=console)) == ["a", "b"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_quiet_console_prints_nothing(terminal, monkeypatch, capsys):
    monkeypatch.setattr(progress, "BRIEF", 0.0)
    console = Console(quiet=True, force_terminal=terminal)
    with progress.training_bar(2, console=console) as show:
        show(2, {"loss": 1.0})
    assert list(progress.track([1, 2], "reading", console=console)) == [1, 2]
    assert capsys.readouterr().out == ""
    assert progress._LIVE == []
