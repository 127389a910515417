"""The end of one process, by an error or by a kill, ends the others with its exit code and a sentence."""

import os
import signal
import subprocess
import sys

import pytest

from runs import TIMEOUT

MEMBER = """
import os, pathlib, signal, sys, threading, time
from sdft_jax.training import liveness

directory, act = pathlib.Path(sys.argv[1]), sys.argv[4]
process, processes = int(sys.argv[2]), int(sys.argv[3])

class Files:
    "Keys as files, in place of JAX's coordination service."
    def key_value_set(self, key, value):
        file = directory / key.replace("/", "-")
        file.with_suffix(".new").write_text(value)
        file.with_suffix(".new").replace(file)

    def blocking_key_value_get(self, key, timeout_in_ms):
        while not (directory / key.replace("/", "-")).exists():
            time.sleep(0.01)
        return (directory / key.replace("/", "-")).read_text()

liveness.GRACE = float(os.environ["GRACE"])
liveness.join(Files(), process, processes, "localhost")
(directory / f"ready-{process}").touch()
while len(list(directory.glob("ready-*"))) < processes:
    time.sleep(0.01)
if process == 0:  # it has accepted all of the others
    while len(liveness._groups[0].connections) < processes - 1:
        time.sleep(0.01)
    (directory / "complete").touch()
while not (directory / "complete").exists():
    time.sleep(0.01)
if act == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "wait":
    threading.Event().wait()
if act == "after":  # ends well once the others have
    while len(list(directory.glob("done-*"))) < processes - 1:
        time.sleep(0.01)
print("message of", process, flush=True)
liveness.leave(int(act) if act.isdigit() else 0)
(directory / f"done-{process}").touch()
"""


def run(directory, *acts, member=MEMBER, grace=0.2):
    """Run one process for each act; return exit codes, what they print, and their lines of stderr."""
    members = [
        subprocess.Popen(
            [sys.executable, "-c", member, str(directory), str(process), str(len(acts)), act],
            env=os.environ | {"GRACE": str(grace)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, act in enumerate(acts)
    ]
    outputs = [member.communicate(timeout=TIMEOUT) for member in members]
    return (
        [m.returncode for m in members],
        [out for out, _ in outputs],
        [err.splitlines() for _, err in outputs],
    )


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_process_ends_the_others(tmp_path, victim):
    acts = ["wait"] * 3
    acts[victim] = "kill"
    codes, _, errors = run(tmp_path, *acts)
    assert codes.pop(victim) == -signal.SIGKILL
    assert errors.pop(victim) == []
    assert codes == [1, 1]
    for (line,) in errors:
        assert line.startswith(f"sdft: process {victim} on ")
        assert line.endswith(
            "has ended without a message, since it was killed or its host has failed: start all processes "
            "again to resume."
        )


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_error_of_one_process_ends_the_others_with_its_exit_code(tmp_path, victim):
    acts = ["wait"] * 3
    acts[victim] = "2"
    codes, _, errors = run(tmp_path, *acts)
    assert codes == [2, 2, 2]
    assert errors.pop(victim) == []
    for (line,) in errors:
        assert line.startswith(f"sdft: process {victim} on ")
        assert line.endswith("has ended with exit code 2: see its message.")


def test_error_of_all_processes_is_reported_by_each(tmp_path):
    codes, outputs, errors = run(tmp_path, "2", "2", "2", grace=TIMEOUT)
    assert codes == [2, 2, 2]
    assert outputs == [f"message of {process}\n" for process in range(3)]
    assert errors == [[], [], []]


@pytest.mark.parametrize("acts", [("0", "0", "after"), ("after", "0", "0"), ("143", "143", "143"), ("0",)])
def test_success_and_signals_end_no_other_process(tmp_path, acts):
    codes, outputs, errors = run(tmp_path, *acts)
    assert codes == [0] * len(acts)
    assert outputs == [f"message of {process}\n" for process in range(len(acts))]
    assert errors == [[]] * len(acts)


STRANGER = """
if process == 1:
    import json, socket
    port, _ = json.loads(Files().blocking_key_value_get(liveness._KEY, 0))
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b'{"secret": "guess", "process": 0, "host": "x", "code": 2}' + bytes([10]))
        assert stranger.recv(1) == b""
"""


def test_stranger_is_not_a_process(tmp_path):
    """A connection without the secret is closed, and ends nothing."""
    member = MEMBER.replace("liveness.join", STRANGER + "liveness.join", 1)
    codes, _, errors = run(tmp_path, "wait", "kill", member=member)
    assert codes == [1, -signal.SIGKILL], errors


SILENT = """
if process == 1:
    import json, socket
    port, _ = json.loads(Files().blocking_key_value_get(liveness._KEY, 0))
    strangers = [socket.create_connection(("localhost", port)) for _ in range(3)]
"""


def test_silent_strangers_delay_no_process(tmp_path):
    """They stay connected, as a port scanner may; the others are accepted and followed."""
    member = MEMBER.replace("liveness.join", SILENT + "liveness.join", 1)
    member = member.replace("liveness.GRACE =", "liveness._TIMEOUT = 100_000; liveness.GRACE =")
    codes, _, errors = run(tmp_path, "wait", "wait", "kill", member=member)
    assert codes == [1, 1, -signal.SIGKILL], errors
