"""Metrics of a resumed run equal those of an uninterrupted one, and sinks are closed with the run."""

import importlib
import json
import resource
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


@pytest.mark.parametrize("service", sinks.SERVICES)
def test_a_missing_service_raises_with_the_command_that_installs_it(tmp_path, monkeypatch, service):
    monkeypatch.setitem(sys.modules, service, None)
    config = ReportConfig(**{service: "project"})
    message = (
        rf"^report\.{service}='project' requires .*: run pip install {service}, or leave report\.{service}"
    )
    with pytest.raises(SdftError, match=message):
        sinks.require_services(config)
    with pytest.raises(SdftError, match=message):
        write_metrics(tmp_path, [1], config=config)


def test_trackio_has_the_metrics_of_a_run_and_of_its_resumption(tmp_path, monkeypatch):
    """Two runs of the same directory name are two in Trackio, and a resumed run is one."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    config, settings = ReportConfig(trackio="project"), {"train": {"steps": 4}}
    for parent in ("one", "two"):
        (tmp_path / parent / "run").mkdir(parents=True)
        write_metrics(tmp_path / parent / "run", [1, 2], config=config, run_config=settings)
    write_metrics(tmp_path / "one" / "run", [3, 4], restored_step=2, config=config, run_config=settings)
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    runs = {run.name: run for run in trackio.Api().runs("project")}
    names = [f"run-{(tmp_path / parent / 'run' / 'trackio.id').read_text()}" for parent in ("one", "two")]
    assert set(runs) == set(names)
    history = storage.get_logs("project", names[0])
    assert [(row["step"], row["loss"]) for row in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert runs[names[0]].config["train"] == {"steps": 4}


def test_wandb_itself_takes_the_metrics_of_a_run_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    pytest.importorskip("wandb")
    output, settings = tmp_path / "run", {"train": {"steps": 4}}
    output.mkdir()
    write_metrics(output, [1, 2], config=ReportConfig(wandb="project"), run_config=settings, warn=pytest.fail)
    identity = (output / "wandb.id").read_text()
    (record,) = output.glob(f"wandb/offline-run-*-{identity}/*.wandb")
    content = record.read_bytes()
    assert all(name in content for name in (b"loss", b"tokens", b"steps", identity.encode()))


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
    sink.write(1, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_metrics_are_on_disk_immediately(tmp_path):
    with sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        sink.write(1, {"loss": 1.0})
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1


def test_failing_sink_is_reported_once_and_the_others_go_on(tmp_path, monkeypatch):
    def refuse(metrics, step):
        raise ConnectionError("no route to host")

    run = types.SimpleNamespace(log=refuse, finish=lambda: refuse({}, 0))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: run))
    said = []
    write_metrics(tmp_path, [1, 2, 3], config=ReportConfig(wandb="p"), warn=said.append)
    assert said == ["W&B cannot be written (no route to host); the run continues."]
    assert len(sinks.read_jsonl(tmp_path / "metrics.jsonl")) == 3


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path):
    said = []
    with sinks.open_sinks(ReportConfig(), tmp_path, warn=said.append) as sink:
        sink.write(1, {"loss": 1.0})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (24, hard))
        try:
            sink.write(2, {"loss": 1.0})
            sink.write(3, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sink.write(4, {"loss": 1.0})
    assert said == [
        f"{tmp_path}/metrics.jsonl cannot be written ([Errno 27] File too large); the run continues."
    ]
    assert [row["step"] for row in sinks.read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b"3\n", b'{"a": 1}\n', b'{"step": 2, "lo\n', b"[" * 5000 + b"\n"]
)
def test_damaged_rows_of_a_log_are_counted_and_the_others_stay(tmp_path, line):
    write_metrics(tmp_path, [1, 3])
    file = tmp_path / "metrics.jsonl"
    first, last = file.read_bytes().splitlines(True)
    file.write_bytes(first + line + last)
    said = []
    write_metrics(tmp_path, [4], restored_step=3, warn=said.append)
    assert said == [f"{file}: 1 damaged rows were dropped."]
    assert [row["step"] for row in sinks.read_jsonl(file)] == [1, 3, 4]


def test_log_that_another_user_replaced_by_a_link_does_not_overwrite_its_target(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep")
    output = tmp_path / "run"
    output.mkdir()
    (output / "metrics.jsonl").symlink_to(precious)
    write_metrics(output, [1], restored_step=-1)
    assert precious.read_text() == "keep"
    assert not (output / "metrics.jsonl").is_symlink()


def test_log_that_is_renamed_meanwhile_is_written_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with sinks.open_sinks(ReportConfig(), tmp_path) as sink:
        sink.write(1, {"loss": 1.0})
        file.rename(tmp_path / "old.jsonl")
        sink.write(2, {"loss": 1.0})
        sink.write(3, {"loss": 1.0})
    assert [row["step"] for row in sinks.read_jsonl(file)] == [1, 2, 3]


def test_full_disk_of_tensorboard_is_reported_and_does_not_block(tmp_path):
    """The queue of tensorboardX's own thread holds ten values."""
    said = []
    config = ReportConfig(tensorboard=True)
    with sinks.open_sinks(config, tmp_path, warn=said.append) as sink:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
        try:
            for step in range(1, 13):
                sink.write(step, {f"metric {number}": 1.0 for number in range(9)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path}/tensorboard cannot be written ([Errno 27] File too large); the run continues." in said


@pytest.mark.parametrize("text", ["", "a b/c", "my-run_1"])
def test_identity_of_a_wandb_run_is_made_again_if_it_is_damaged(tmp_path, monkeypatch, text):
    identities = []
    run = types.SimpleNamespace(log=lambda metrics, step: None, finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **options: identities.append(options["id"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "wandb.id").write_text(text)
    write_metrics(tmp_path, [1], config=ReportConfig(wandb="p"))
    assert len(identities[0]) > 3
    assert (identities[0] == text) == (text == "my-run_1")
    assert (tmp_path / "wandb.id").read_text() == identities[0]
