"""Metrics of a resumed run equal those of an uninterrupted one, and sinks are closed with the run."""

import json
import sys
import types

import jax
import pytest

from sdft_jax.config.settings import ReportConfig
from sdft_jax.errors import SdftError
from sdft_jax.reporting import sinks


def write_metrics(output, steps, restored_step=0, config=None, **options):
    with sinks.open_sinks(config or ReportConfig(), output, restored_step, **options) as sink:
        for step in steps:
            sink.write(step, {"loss": 1 / step, "tokens": step * 1.5})


def test_metrics_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path):
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    uninterrupted.mkdir()
    resumed.mkdir()
    write_metrics(uninterrupted, range(1, 9))
    write_metrics(resumed, range(1, 7))
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    write_metrics(resumed, range(5, 9), restored_step=4)
    assert (resumed / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()


def test_metrics_start_with_the_step_and_are_finite_or_null(tmp_path):
    with sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        sink.write(1, {"loss": jax.numpy.float32(0.5), "ratio": float("inf")})
        text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss": 0.5, "ratio": null}\n'


def test_a_new_run_does_not_append_to_old_metrics(tmp_path):
    write_metrics(tmp_path, [1, 2])
    write_metrics(tmp_path, [1])
    assert len(sinks.read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_no_sinks_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sinks.NO_SINKS.write(1, {"loss": 1.0})
    sinks.NO_SINKS.write_evaluation(1, {"accuracy": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_tensorboard_writes_an_event_file(tmp_path):
    write_metrics(tmp_path, [1, 2], config=ReportConfig(tensorboard=True))
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    assert b"tokens" in events[0].read_bytes()


def test_missing_wandb_raises_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SdftError, match=r"pip install 'sdft_jax\[wandb\]'"):
        write_metrics(tmp_path, [1], config=ReportConfig(wandb="project"))


def test_a_resumed_run_continues_its_wandb_run(tmp_path, monkeypatch):
    init_options, logged, finished = [], [], []
    run = types.SimpleNamespace(
        log=lambda metrics, step: logged.append((step, metrics["tokens"])), finish=lambda: finished.append(1)
    )
    fake = types.SimpleNamespace(init=lambda **options: init_options.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for steps in ([1], [2]):
        write_metrics(tmp_path, steps, steps[0] - 1, ReportConfig(wandb="p"), run_config={"a": 1})
    assert init_options[0] == init_options[1]
    assert (init_options[0]["project"], init_options[0]["resume"], init_options[0]["config"]) == (
        "p",
        "allow",
        {"a": 1},
    )
    assert (logged, finished) == ([(1, 1.5), (2, 3.0)], [1, 1])


def test_sinks_are_closed_when_the_run_fails(tmp_path):
    with pytest.raises(RuntimeError), sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        raise RuntimeError
    with pytest.raises(ValueError, match="closed file"):
        sink.write(1, {"loss": 1.0})


def test_metrics_are_on_disk_immediately(tmp_path):
    with sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        sink.write(1, {"loss": 1.0})
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1
