"""A real server in place of Google's: what it announces ends real runs, on all hosts after the same step."""

import contextlib
import http.server
import re
import threading
import time
from pathlib import Path

import pytest

from process_groups import begin, wait_for_step
from runs import start, step_names, write_config
from sdft_jax.errors import SdftError
from sdft_jax.training import preemption


class Server(http.server.ThreadingHTTPServer):
    """Answers as the metadata server does; `event` is what it announces, None: it knows of no such key."""

    event: str | None = "NONE"
    asked = 0

    @property
    def address(self):
        return f"127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/computeMetadata/v1/instance/maintenance-event" and self.server.event
        code = 403 if self.headers["Metadata-Flavor"] != "Google" else 200 if known else 404
        self.server.asked += 1
        self.send_response(code)
        self.end_headers()
        if code == 200:
            self.wfile.write(self.server.event.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Answer) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@contextlib.contextmanager
def watching(server, seconds="0.1"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDFT_MAINTENANCE", seconds)
        patch.setenv("GCE_METADATA_HOST", server.address)
        yield patch


SETTINGS = (
    "train.steps=2000",
    "train.save_every=1",
    "eval.path=null",
    "eval.prior=null",
    "train.rollouts_every=0",
    "checkpoint.keep_last=9999",
)


def test_announced_maintenance_saves_and_exits_143(server, half_directory, tmp_path, caches):
    output = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", half_directory, output, *SETTINGS)
    with watching(server) as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")  # never asked
        process = start(["-m", "sdft_jax.cli", "train", config], caches)
    wait_for(output, process)
    server.event = "MIGRATE_ON_HOST_MAINTENANCE"  # a migration is survived
    asked = server.asked
    while server.asked < asked + 3:
        time.sleep(0.05)
    assert process.poll() is None
    server.event = preemption.ANNOUNCED
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    announced, stopped = errors.splitlines()
    assert announced == "sdft: maintenance of this host is announced."
    step = int(re.fullmatch(r"sdft: stopped by SIGTERM after step (\d+); .*", stopped)[1])
    assert max(step_names(output)) == step


def test_maintenance_of_one_host_stops_all_after_the_same_step(server, half_directory, tmp_path, caches):
    output = tmp_path / "run"
    config = write_config(
        tmp_path / "run.yaml", half_directory, output, *SETTINGS, "mesh.data=-1", "mesh.fsdp=2"
    )
    quiet = Server(("127.0.0.1", 0), Answer)
    threading.Thread(target=quiet.serve_forever, daemon=True).start()
    with watching(server):
        other = [{"GCE_METADATA_HOST": quiet.address}, {}]
        group = begin(config, 2, caches, environments=other)
    wait_for_step(output, 1, group)
    server.event = preemption.ANNOUNCED
    codes, errors = group.end()
    quiet.shutdown()
    quiet.server_close()
    assert codes == [143, 143], errors
    assert quiet.asked > 0
    told = [re.search(r"stopped by SIGTERM after step \d+;", text)[0] for text in errors]
    assert told[0] == told[1]
    assert ["announced" in text for text in errors] == [False, True]


def wait_for(output: Path, process) -> None:
    until = time.monotonic() + 120
    while not (output / "checkpoints" / "1" / "manifest.json").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def killed(monkeypatch):
    """Signals that were sent, none of which arrives."""
    sent = []
    monkeypatch.setattr(preemption.os, "kill", lambda *signal: sent.append(signal))
    return sent


def test_what_was_announced_before_does_not_stop_a_run_again(server, killed):
    server.event = preemption.ANNOUNCED
    preemption.watch({"SDFT_MAINTENANCE": "0.02", "GCE_METADATA_HOST": server.address})
    until(lambda: server.asked > 3)
    assert killed == []
    server.event = "NONE"
    asked = server.asked
    until(lambda: server.asked > asked + 1)
    server.event = preemption.ANNOUNCED  # another one
    until(lambda: killed)


def test_where_nobody_knows_the_run_goes_on_and_says_so_once(server, killed, capsys):
    server.event = None
    preemption.watch({"SDFT_MAINTENANCE": "0.02", "GCE_METADATA_HOST": server.address})
    until(lambda: "does not tell of maintenance" in capsys.readouterr().err)
    time.sleep(0.2)
    assert server.asked == 1
    assert killed == []


def test_without_being_asked_for_nothing_is_watched(server):
    threads = threading.active_count()
    preemption.watch({"GCE_METADATA_HOST": server.address})
    assert threading.active_count() == threads
    assert server.asked == 0


@pytest.mark.parametrize("text", ["yes", "0", "-1", "nan", "inf"])
def test_what_is_no_number_of_seconds_is_refused(text):
    with pytest.raises(SdftError, match=f"SDFT_MAINTENANCE='{text}' is no number of seconds"):
        preemption.watch({"SDFT_MAINTENANCE": text})


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
