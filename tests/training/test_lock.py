"""A run directory has one owner; an owner that has ended in any way does not block another."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

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


def attempt(environment, host: str, patience: int) -> subprocess.CompletedProcess:
    """Try to own the directory in the bucket as another host, which waits for that many renewals."""
    code = """
    import socket, sys
    socket.gethostname = lambda: sys.argv[1]
    from sdft_jax.errors import SdftError
    from sdft_jax.training import lock
    lock.RENEWAL, lock.PATIENCE = 0.5, int(sys.argv[2])
    try:
        with lock.locked("gs://bucket/run", True):
            print("owns")
    except SdftError as error:
        print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), host, str(patience)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_owner_of_a_bucket_is_the_one_that_renews_its_lock(bucket_environment):
    process = hold("gs://bucket/run", bucket_environment)
    refused = attempt(bucket_environment, "elsewhere", 600)
    assert f"gs://bucket/run is in use by process {process.pid} on {socket.gethostname()}" in refused.stdout
    process.send_signal(signal.SIGSTOP)  # it renews no more, as if its host were gone
    taken = attempt(bucket_environment, "elsewhere", 4)
    kill(process)
    assert taken.stdout == "owns\n", taken.stderr


def test_dead_process_does_not_block_a_bucket(bucket_environment):
    kill(hold("gs://bucket/run", bucket_environment))
    taken = attempt(bucket_environment, socket.gethostname(), 4)
    assert taken.stdout == "owns\n", taken.stderr


def test_owner_that_another_run_replaced_ends(bucket_environment):
    process = hold("gs://bucket/run", bucket_environment)
    process.send_signal(signal.SIGSTOP)
    assert attempt(bucket_environment, "elsewhere", 4).stdout == "owns\n"
    replace = (
        "from etils import epath; epath.Path('gs://bucket/run/.lock').write_text('{\"token\": \"other\"}')"
    )
    subprocess.run([sys.executable, "-c", replace], env=bucket_environment, check=True)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 2
    process.stdout.close()
