"""SIGTERM, and maintenance notices from a local metadata server, end a run after a step on all hosts."""

import contextlib
import http.server
import os
import re
import signal
import threading
import types

import pytest

from process_groups import begin, wait_for_step
from runs import TIMEOUT, step_names, wait_until, write_config
from sdft_jax.errors import SdftError
from sdft_jax.training import preemption
from sdft_jax.training.preemption import Terminated, termination_requests, watch_maintenance


class Server(http.server.ThreadingHTTPServer):
    """A metadata server that announces `event`, or does not have the key if `event` is None."""

    daemon_threads = True
    event: str | None = "NONE"
    requests = 0

    @property
    def address(self):
        return f"127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        event = self.server.event
        exists = self.path == "/computeMetadata/v1/instance/maintenance-event" and event
        code = 403 if self.headers["Metadata-Flavor"] != "Google" else 200 if exists else 404
        self.server.requests += 1
        self.send_response(code)
        self.end_headers()
        if code == 200:
            self.wfile.write(event.encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving():
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server():
    with serving() as server:
        yield server


def watching(server, seconds="0.1"):
    return {"SDFT_MAINTENANCE": seconds, "GCE_METADATA_HOST": server.address}


ENDLESS = (
    "train.steps=1000000",
    "train.save_every=1",
    "eval.path=null",
    "eval.prior=null",
    "train.rollouts_every=0",
    "checkpoint.keep_last=1000000",
)
"""Settings of a run that only a signal ends."""


def test_announced_maintenance_of_one_host_saves_and_stops_all_after_the_same_step(
    server, half_directory, tmp_path, caches
):
    output = tmp_path / "run"
    config = write_config(
        tmp_path / "run.yaml", half_directory, output, *ENDLESS, "mesh.data=-1", "mesh.fsdp=2"
    )
    with serving() as other:
        group = begin(config, 2, caches, environments=[watching(other), watching(server)])
        wait_for_step(output, 1, group)
        server.event = "MIGRATE_ON_HOST_MAINTENANCE"  # does not end a process
        before = server.requests
        wait_until(lambda: server.requests >= before + 3, *group.members)
        assert [member.poll() for member in group.members] == [None, None]
        server.event = preemption.ANNOUNCED
        codes, errors = group.end()
        assert other.requests > 0
    assert codes == [143, 143], errors
    stopped = r"^sdft: stopped by SIGTERM after step (\d+): start the same "
    steps = [int(re.search(stopped, text, re.M)[1]) for text in errors]
    assert steps == [max(step_names(output))] * 2
    announced = "sdft: maintenance of this host is announced."
    assert [announced in text.splitlines() for text in errors] == [False, True]


@pytest.fixture
def watch(monkeypatch):
    """`watch_maintenance`, which returns the threads that it has started."""

    def watch(environment):
        threads = []

        def make_thread(**options):
            threads.append(threading.Thread(**options))
            return threads[-1]

        monkeypatch.setattr(preemption, "threading", types.SimpleNamespace(Thread=make_thread))
        watch_maintenance(environment)
        return threads

    return watch


@pytest.fixture
def signals(monkeypatch):
    """The signals that the process sent to itself; none is delivered."""
    sent = []
    monkeypatch.setattr(preemption.os, "kill", lambda *signal: sent.append(signal))
    return sent


def test_event_that_was_announced_before_the_start_does_not_end_a_run(server, signals, watch, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not used: the server is on the host
    server.event = preemption.ANNOUNCED
    (thread,) = watch(watching(server, "0.02"))
    wait_until(lambda: server.requests > 3)
    assert signals == []
    server.event = "NONE"
    before = server.requests
    wait_until(lambda: server.requests > before + 1)
    server.event = preemption.ANNOUNCED  # another event
    thread.join(TIMEOUT)
    assert signals == [(os.getpid(), signal.SIGTERM)]


def test_server_without_the_key_is_queried_once(server, signals, watch, capsys):
    server.event = None
    (thread,) = watch(watching(server, "0.02"))
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert re.fullmatch(
        rf"sdft: {server.address} does not report maintenance events \(.*404.*\); the run continues without "
        r"them\.\n",
        capsys.readouterr().err,
    )
    assert server.requests == 1
    assert signals == []


def test_unreachable_server_is_reported_once_and_queried_again(signals, watch, capsys, monkeypatch):
    requests, events = [], {4: "NONE", 5: preemption.ANNOUNCED}

    def event(host):
        requests.append(host)
        if len(requests) in events:
            return events[len(requests)]
        raise OSError("no route")

    monkeypatch.setattr(preemption, "_event", event)
    (thread,) = watch({"SDFT_MAINTENANCE": "0.02", "GCE_METADATA_HOST": "host"})
    thread.join(TIMEOUT)
    assert requests == ["host"] * 5
    text = "host does not report maintenance events (no route); the run continues without them"
    assert capsys.readouterr().err == f"sdft: {text}.\nsdft: maintenance of this host is announced.\n"
    assert signals == [(os.getpid(), signal.SIGTERM)]


def test_without_a_number_of_seconds_no_server_is_queried(server, watch):
    assert watch({"GCE_METADATA_HOST": server.address}) == []
    assert server.requests == 0


@pytest.mark.parametrize("text", ["yes", "0", "-1", "nan", "inf"])
def test_invalid_number_of_seconds_is_refused(text):
    with pytest.raises(SdftError, match=f"^SDFT_MAINTENANCE='{text}' is not a number of seconds: set it to"):
        watch_maintenance({"SDFT_MAINTENANCE": text})


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_termination_is_requested_by_a_signal_after_the_first_step(number):
    previous = signal.getsignal(number)
    with termination_requests() as requests:
        requests.check()
        assert signal.getsignal(number) is previous
        requests.listen()
        requests.check()
        os.kill(os.getpid(), number)
        for _ in range(2):
            with pytest.raises(Terminated) as caught:
                requests.check()
            assert caught.value.by is number
    assert signal.getsignal(number) is previous
    with termination_requests() as requests:
        requests.listen()
        requests.check()


def test_numbers_of_checks_go_on_in_the_next_run(monkeypatch):
    """JAX ends all processes at the check after the last one: if numbers started again, it would not come."""
    numbers = []

    def reached(number):
        numbers.append(number)
        return len(numbers) == 4

    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    monkeypatch.setattr(preemption.multihost_utils, "reached_preemption_sync_point", reached)
    with termination_requests() as requests:
        requests.check()
        requests.check()
    with termination_requests() as requests:
        requests.check()
        with pytest.raises(Terminated):
            requests.check()
    assert numbers == [numbers[0] + number for number in range(4)]


def test_second_sigint_is_handled_as_before():
    with termination_requests() as requests:
        requests.listen()
        requests.listen()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ignored_signal_stays_ignored():
    """The program nohup ignores SIGHUP."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_requests() as requests:
            requests.listen()
            os.kill(os.getpid(), signal.SIGHUP)
            requests.check()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_other_threads_than_the_main_one_ignore_sigterm():
    """Only the main thread of Python can handle signals; notebooks run cells in others."""
    results = []

    def enter():
        with termination_requests() as requests:
            requests.listen()
            results.append(requests.check())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert results == [None]
