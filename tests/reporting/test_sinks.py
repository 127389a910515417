"""Metrics survive a resumption, the console stays readable, pictures and rollouts say what they show."""

import io
import json
import sys
import types

import jax
import pytest
from rich.console import Console

from sdft_jax.config.settings import ReportConfig
from sdft_jax.errors import SdftError
from sdft_jax.reporting import hardware as hardware_module
from sdft_jax.reporting import progress as progress_module
from sdft_jax.reporting import rollouts, sinks, tables
from sdft_jax.reporting.rollouts import RolloutRow
from sdft_jax.reporting.run_plot import plot_run


def write_metrics(output, steps, restored_step=0, config=None, **options):
    with sinks.open_sinks(config or ReportConfig(), output, restored_step, **options) as sink:
        for step in steps:
            sink.write(step, {"loss": 1 / step, "tokens": step * 1.5})


def test_metrics_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    write_metrics(whole, range(1, 9))
    write_metrics(broken, range(1, 7))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    write_metrics(broken, range(5, 9), restored_step=4)
    assert (broken / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_metrics_are_numbers_or_null_and_begin_with_the_step(tmp_path):
    with sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        sink.write(1, {"loss": jax.numpy.float32(0.5), "ratio": float("inf")})
        text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss": 0.5, "ratio": null}\n'


def test_a_fresh_run_does_not_append_to_old_metrics(tmp_path):
    write_metrics(tmp_path, [1, 2])
    write_metrics(tmp_path, [1])
    assert len(sinks.read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_inactive_processes_write_nothing(tmp_path, capsys):
    config = ReportConfig(tensorboard=True, wandb="project")
    write_metrics(tmp_path, [1, 2], config=config, active=False)
    rollouts.write_rollouts(tmp_path / "rollouts", 1, [], active=False)
    with progress_module.training_bar(2, active=False) as show:
        show(2, {"loss": 1.0})
    assert list(progress_module.track([1, 2], "reading", active=False)) == [1, 2]
    plot_run(tmp_path / "metrics.jsonl", [], tmp_path / "run.png", active=False)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_tensorboard_gets_event_files(tmp_path):
    write_metrics(tmp_path, [1, 2], config=ReportConfig(tensorboard=True))
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    assert b"tokens" in events[0].read_bytes()


def test_wandb_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SdftError, match=r"pip install 'sdft_jax\[wandb\]'"):
        write_metrics(tmp_path, [1], config=ReportConfig(wandb="project"))


def test_wandb_run_is_continued_on_resumption(tmp_path, monkeypatch):
    begun, logged, finished = [], [], []
    run = types.SimpleNamespace(
        log=lambda metrics, step: logged.append((step, metrics["tokens"])), finish=lambda: finished.append(1)
    )
    fake = types.SimpleNamespace(init=lambda **options: begun.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for steps in ([1], [2]):
        write_metrics(tmp_path, steps, steps[0] - 1, ReportConfig(wandb="p"), run_config={"a": 1})
    assert begun[0] == begun[1]
    assert (begun[0]["project"], begun[0]["resume"], begun[0]["config"]) == ("p", "allow", {"a": 1})
    assert (logged, finished) == ([(1, 1.5), (2, 3.0)], [1, 1])


def test_sinks_are_closed_when_the_run_fails(tmp_path):
    with pytest.raises(RuntimeError), sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        raise RuntimeError
    with pytest.raises(ValueError, match="closed file"):
        sink.write(1, {"loss": 1.0})


def test_live_bar_shows_loss_speed_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_module.training_bar(10, start=4, console=console) as show:
        show(5, {"loss": 0.1234, "tokens_per_second": 12345.6})
    text = console.file.getvalue()
    for part in ("training", "5/10", "loss 0.1234", "12,346 tok/s", "0:00:00"):
        assert part in text


def test_bars_nest_and_end_with_their_context():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_module.training_bar(2, console=console) as show:
        assert list(progress_module.track([1, 2], "evaluating [new]", console=console)) == [1, 2]
        show(1, {"loss": 1.0})
    assert "evaluating [new]" in console.file.getvalue()
    last = console.file.getvalue().splitlines()[-2]
    assert "training" in last
    assert "evaluating" not in last
    assert progress_module._LIVE == []


def test_plain_lines_are_few_and_tell_the_end(monkeypatch):
    clock = iter(range(0, 10**7, 30))  # every step takes 30 s
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))
    console = Console(file=io.StringIO(), width=40)
    with progress_module.training_bar(10_000, console=console) as show:
        for step in range(1, 10_001):
            show(step, {"loss": 0.5, "tokens_per_second": 1000.0})
    lines = console.file.getvalue().splitlines()
    assert 20 < len(lines) < 120
    assert lines[0] == "training 1/10000, loss 0.5000, 1,000 tok/s, 0:30 elapsed, 83:19:30 left"
    assert lines[-1] == "training 10000/10000, loss 0.5000, 1,000 tok/s, 83:20:00 elapsed"


def test_progress_yields_everything_and_counts(monkeypatch):
    console = Console(file=io.StringIO())
    assert list(progress_module.track("abc", "reading", console=console)) == ["a", "b", "c"]
    assert console.file.getvalue() == "", "what is done at once needs no line"
    monkeypatch.setattr(progress_module, "BRIEF", 0.0)
    assert list(progress_module.track("abc", "reading", console=console)) == ["a", "b", "c"]
    assert console.file.getvalue() == "reading 3/3, 0:00 elapsed\n"
    assert list(progress_module.track(iter("ab"), "reading", console=console)) == ["a", "b"]


def test_summary_table_has_generic_columns():
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


ROW = RolloutRow("What is 2+2?", " four!", [" fo", "ur", "!"], [0.5, 0.01, 0.1], [-0.3, 0.0, 0.2])


def test_rollouts_are_stored_and_readable(tmp_path):
    for _ in range(2):  # a step that a resumed run does again
        rollouts.write_rollouts(tmp_path, 50, [ROW, ROW])
    rows = sinks.read_jsonl(tmp_path / "000050.jsonl")
    assert len(rows) == 2
    assert rows[0]["step"] == 50
    assert RolloutRow(**{key: value for key, value in rows[0].items() if key != "step"}) == ROW
    text = (tmp_path / "000050.txt").read_text()
    for part in ("step 50, rollout 2", "What is 2+2?", " four!", "sum of all: 0.610"):
        assert part in text


def test_rollout_text_shows_the_most_divergent_tokens_in_order():
    lines = rollouts.rollout_text(ROW, "t", most=2).splitlines()[-2:]
    assert lines[0].split() == ["0", "0.5000", "-0.3000", "'", "fo'", "#" * 20]
    assert lines[1].split() == ["2", "0.1000", "+0.2000", "'!'", "#" * 4]
    assert "0 of 0 tokens" in rollouts.rollout_text(RolloutRow("p", "", [], [], []), "empty")


@pytest.mark.parametrize("with_rows", [True, False])
def test_plot_is_a_picture(tmp_path, with_rows):
    write_metrics(tmp_path, range(1, 30))
    rows = [
        {"method": "base", "step": 0, "new": 0.1, "old": 0.7},
        {"method": "teacher", "step": 0, "new": 0.8},
        {"method": "SDFT", "step": 0, "new": 0.1, "old": 0.7},
        {"method": "SDFT", "step": 30, "new": 0.6, "old": None},
        {"method": "SFT", "step": 30, "new": 0.5, "old": 0.4},
    ]
    plot_run(tmp_path / "metrics.jsonl", rows if with_rows else [], tmp_path / "run.png", "measured here")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_hardware_is_one_line_with_devices_and_version():
    line = hardware_module.describe_hardware()
    assert "\n" not in line
    assert line.startswith(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    assert jax.__version__ in line


def test_metrics_are_on_disk_at_once(tmp_path):
    with sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        sink.write(1, {"loss": 1.0})
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1
