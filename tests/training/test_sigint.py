"""Ctrl-C ends a command at once, also within C++ code, unless a run saves its state."""

import signal
import subprocess
import sys

import pytest

WAIT = """
import ctypes, os, signal
from sdft_jax.training.sigint import SAVES, end_at_once_on_sigint
end_at_once_on_sigint()
{before}
print("ready", flush=True)
ctypes.CDLL(None).pause.restype = None
while True:
    ctypes.CDLL(None).pause()  # as a compiler does, it returns to Python only later
"""


def start(before: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT.format(before=before)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigint_ends_a_command_at_once():
    process = start("")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + signal.SIGINT, "sdft: stopped by SIGINT.\n")


def test_second_sigint_ends_a_run_that_saves():
    process = start("SAVES.set(); signal.signal(signal.SIGINT, lambda *_: os.write(1, b'saves\\n'))")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saves\n"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "signal.SIG_DFL"])
def test_handler_of_another_program_stays(handler):
    """A shell ignores SIGINT for programs in the background."""
    code = (
        "import signal; from sdft_jax.training.sigint import end_at_once_on_sigint\n"
        f"signal.signal(signal.SIGINT, {handler}); end_at_once_on_sigint()\n"
        f"assert signal.getsignal(signal.SIGINT) == {handler}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
