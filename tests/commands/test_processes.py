"""The start of a command in several processes, and its exit code after SIGTERM."""

import signal

import pytest

from sdft_jax.commands import processes
from sdft_jax.config import Config, to_dict
from sdft_jax.errors import SdftError
from sdft_jax.training.preemption import Interrupted


@pytest.fixture
def calls(monkeypatch):
    """The calls of the functions that start processes, the watcher and the compilation cache, in order."""
    calls = []

    def record(name):
        monkeypatch.setattr(processes, name, lambda *arguments: calls.append((name, *arguments)))

    for name in ("initialize", "require_agreement", "watch_maintenance", "enable_compile_cache"):
        record(name)
    return calls


START = [
    ("initialize",),
    ("require_agreement", to_dict(Config())),
    ("watch_maintenance",),
    ("enable_compile_cache",),
]


def test_processes_are_joined_before_their_configurations_are_compared(calls):
    processes.join_processes(Config())
    assert calls == START[:2]


def test_command_runs_after_the_start(calls):
    assert processes.run_until_terminated(lambda config: calls.append(("run", config)), Config()) == 0
    assert calls == [*START, ("run", Config())]


@pytest.mark.parametrize(("by", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_exit_code_after_a_signal(calls, capsys, by, code):
    def run(config):
        raise Interrupted("stopped after step 3", by)

    assert processes.run_until_terminated(run, Config()) == code
    assert capsys.readouterr().err == "sdft: stopped after step 3\n"


def test_other_errors_are_raised(calls):
    def run(config):
        raise SdftError("wrong")

    with pytest.raises(SdftError, match="wrong"):
        processes.run_until_terminated(run, Config())
