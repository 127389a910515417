"""A run directory has one owner; an owner that has ended in any way does not block another."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.training import lock
from sdft_jax.training.lock import locked

HOLD = """
import sys, time
from sdft_jax.training import lock
lock.RENEWAL = 0.2
with lock.locked(sys.argv[1], "://" in sys.argv[1]):
    print("owns", flush=True)
    time.sleep(600)
"""


def hold(output, environment=None) -> subprocess.Popen:
    """Start a process that owns the directory, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "owns\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_owner_is_refused_until_the_first_has_ended(tmp_path):
    process = hold(tmp_path)
    owner = rf"process {process.pid} on {socket.gethostname()}, since 20\d\d-.*"
    with (
        pytest.raises(SdftError, match=rf"^output={tmp_path} is in use by {owner}: wait until it ends, stop"),
        locked(str(tmp_path), False),
    ):
        raise AssertionError
    kill(process)
    with locked(str(tmp_path), False):
        assert str(os.getpid()) in (tmp_path / lock.LOCK).read_text()
    assert (tmp_path / lock.LOCK).read_text() == ""
    with locked(str(tmp_path), False):
        pass


def test_lock_is_not_written_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lock.LOCK).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), locked(str(tmp_path / "run"), False):
        raise AssertionError
    assert precious.read_text() == "keep"


ATTEMPTS = """
import socket, sys
from etils import epath
from sdft_jax.errors import SdftError
from sdft_jax.training import lock
lock.RENEWAL = 0.2
for line in sys.stdin:
    host, patience = line.split()
    socket.gethostname, lock.PATIENCE = lambda: host, int(patience)
    try:
        with lock.locked("gs://bucket/run", True):
            answer = "owns"
    except SdftError as error:
        answer = error
    if host == "replacing":
        epath.Path("gs://bucket/run/.lock").write_text('{"token": "other"}')
    print(answer, flush=True)
"""
"""Tries to own the directory in the bucket as another host, which waits for that many renewals.

The host `replacing` leaves the lock of another owner.
"""


@pytest.fixture(scope="module")
def attempt(bucket_environment):
    """A function of a host and its patience, which returns its refusal, or that it owns the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", ATTEMPTS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=bucket_environment,
    )

    def attempt(host: str, patience: int) -> str:
        process.stdin.write(f"{host} {patience}\n")
        process.stdin.flush()
        return process.stdout.readline()

    yield attempt
    process.communicate()
    assert process.returncode == 0


def test_owner_of_a_bucket_is_the_one_that_renews_its_lock(bucket_environment, attempt):
    process = hold("gs://bucket/run", bucket_environment)
    refused = attempt("elsewhere", 1500)
    assert f"gs://bucket/run is in use by process {process.pid} on {socket.gethostname()}" in refused
    process.send_signal(signal.SIGSTOP)  # it renews no more, as if its host were gone
    taken = attempt("elsewhere", 4)
    kill(process)
    assert taken == "owns\n"


def test_dead_process_does_not_block_a_bucket(bucket_environment, attempt):
    kill(hold("gs://bucket/run", bucket_environment))
    assert attempt(socket.gethostname(), 4) == "owns\n"


def test_owner_that_another_run_replaced_ends(bucket_environment, attempt):
    process = hold("gs://bucket/run", bucket_environment)
    process.send_signal(signal.SIGSTOP)
    assert attempt("replacing", 4) == "owns\n"
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 2
    process.stdout.close()
