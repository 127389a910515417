"""Several processes as one program: their run is that of one process, also if it is killed and resumed."""

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from process_groups import (
    CLI,
    begin,
    free_address,
    member_environment,
    results,
)
from runs import TIMEOUT, finish, read, start, step_names, wait_until, write_config
from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.answer_log import read_answers
from sdft_jax.training import processes

SETTINGS = ("mesh.data=-1", "mesh.fsdp=2", "train.steps=8", "train.save_every=1", "checkpoint.keep_last=99")
PLAIN = ("eval.path=null", "eval.prior=null", "train.rollouts_every=0")
"""Settings without evaluations and rollouts."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def config(directory, half_directory):
    return write_config(directory / "run.yaml", half_directory, directory / "unused", *SETTINGS)


@pytest.fixture(scope="module")
def two(directory, config, caches):
    """The output of an uninterrupted run of two processes."""
    codes, errors = begin(config, 2, caches, f"output={directory / 'two'}").end()
    assert codes == [0, 0], errors
    return directory / "two"


def assert_close(one, other):
    """Losses and other metrics differ by rounding only, and accuracies and lengths not at all."""
    left, right = results(one), results(other)
    assert left["rollouts"].keys() == right["rollouts"].keys()
    for a, b in zip(left["metrics"], right["metrics"], strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=0, atol=1e-5)
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=1e-5, err_msg=f"{key} {a['step']}")
    for a, b in zip(left["evaluations"], right["evaluations"], strict=True):
        for key in ("accuracy", "prior", "length"):
            assert a[key] == b[key]


def test_two_processes_train_as_one(two, directory, config, shared_compilations):
    output = directory / "one"
    assert cli.main(["train", config, f"output={output}", "mesh.data=2"]) == 0
    assert_close(two, output)
    assert step_names(two) == step_names(output) == list(range(1, 9))


AT_STEP = """
import os, signal, sys, time
from sdft_jax import cli
from sdft_jax.training import loop

next_batch, batches = loop._next_batch, []

def next_batch_and_act(arguments):
    batches.append(next_batch(arguments))
    if len(batches) == STEP:
        act()
    return batches[-1]

loop._next_batch = next_batch_and_act
"""
KILLED = (
    AT_STEP.replace("STEP", "4")
    + """
def act():
    (output,) = (word.removeprefix("output=") for word in sys.argv if word.startswith("output="))
    while not os.path.exists(f"{output}/checkpoints/3/evaluation.json"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

sys.exit(cli.main(sys.argv[1:]))
"""
)


@pytest.fixture(scope="module")
def killed(two, directory, config, caches):
    """The output of a run of two processes, one of which was killed at step 4, and a copy `four`."""
    output = directory / "killed"
    group = begin(config, 2, caches, f"output={output}", programs=[CLI, ["-c", KILLED]])
    codes, errors = group.end()  # process 0 ends by itself
    assert codes == [1, -signal.SIGKILL], errors
    (message,) = messages(errors[0])
    assert message.startswith("sdft: process 1 on ")
    assert "has ended without a message, since it was killed" in message
    assert step_names(output) == [1, 2, 3]
    assert not (output / "model").exists()
    shutil.copytree(output, directory / "four")
    return output


ENDLESS_EVALUATION = """
import itertools, os, signal, sys
from jax._src.distributed import global_state
from sdft_jax import cli
from sdft_jax.evaluation import completions
from sdft_jax.reporting import reporter

generate, track, batches = completions.generate, reporter.track, []

def generate_and_interrupt(*arguments):
    batches.append(len(batches))
    if len(batches) == 1 and global_state.process_id == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return generate(*arguments)

def track_endlessly(items, description, console):
    return itertools.cycle(track(items, description, console))

completions.generate, reporter.track = generate_and_interrupt, track_endlessly
sys.exit(cli.main(sys.argv[1:]))
"""
"""An evaluation that ends only by the signal."""


def test_killed_run_is_resumed_stopped_within_an_evaluation_and_ends_bit_identical(
    killed, two, config, caches
):
    """SIGTERM on one host, in the evaluation at step 6, which is not saved yet, stops both."""
    more = (f"output={killed}", "train.save_every=4")
    codes, errors = begin(config, 2, caches, *more, programs=[["-c", ENDLESS_EVALUATION]] * 2).end()
    assert codes == [143, 143], errors
    assert all("sdft: stopped by SIGTERM after step 6: start the same command" in text for text in errors)
    assert step_names(killed) == [1, 2, 3, 4, 6]
    assert [row["step"] for row in read(killed / "evaluations.jsonl")] == [0, 3]
    codes, errors = begin(config, 2, caches, *more).end()
    assert codes == [0, 0], errors
    assert results(killed) == results(two)


TERMINATED = (
    AT_STEP.replace("STEP", "2")
    + """
from jax._src.distributed import global_state

def act():
    if global_state.process_id == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    # JAX checks for a signal once per second, and then informs all processes by this key.
    global_state.client.blocking_key_value_get("RECEIVED_PREEMPTION_NOTICE", 600_000)

sys.exit(cli.main(sys.argv[1:]))
"""
)


def test_killed_run_is_resumed_by_four_processes_and_by_one(
    killed, two, directory, config, caches, shared_compilations
):
    """SIGTERM on one host stops the four at step 5, all after the same step; the one is this process."""
    output = directory / "four"
    programs = [["-c", TERMINATED]] * 4
    codes, errors = begin(config, 4, caches, f"output={output}", "mesh.fsdp=4", programs=programs).end()
    assert codes == [143] * 4, errors
    stops = [
        [line for line in text.splitlines() if "stopped by SIGTERM after step" in line] for text in errors
    ]
    assert stops == [stops[0]] * 4
    assert len(stops[0]) == 1
    last = max(step_names(output))
    assert f"after step {last}:" in stops[0][0]
    assert 5 <= last < 8
    assert cli.main(["train", config, f"output={output}", "mesh.data=1", "mesh.fsdp=1"]) == 0
    assert_close(two, output)


LOST = (
    AT_STEP.replace("STEP", "8")
    + """
from pathlib import Path

def act():
    while not list(Path(LOCAL).glob("*/0/6.1.copy")) or not list(Path(LOCAL).glob("*/1/6.1.own")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

sys.exit(cli.main(sys.argv[1:]))
"""
)


@pytest.fixture(scope="module")
def lost(config, directory, caches):
    """A directory with `run` and `local`: the output and the local checkpoints of a run that was lost.

    Two processes save locally every third step, and process 1 dies after step 7; 4 is in the output.
    """
    place = directory / "lost"
    output, local = place / "run", place / "local"
    program = ["-c", LOST.replace("LOCAL", repr(str(local)))]
    codes, errors = begin(config, 2, caches, *words(place), programs=[CLI, program]).end()
    assert codes == [1, -signal.SIGKILL], errors
    assert step_names(output) == [4]
    (disk,) = local.glob("*/1")
    assert sorted(os.listdir(disk.parent / "0")) == ["3.0.own", "3.1.copy", "6.0.own", "6.1.copy"]
    shutil.copytree(place, directory / "lost-copy")
    return place


def words(place):
    local = (f"checkpoint.local={place / 'local'}", "checkpoint.local_every=3")
    return (f"output={place / 'run'}", "train.save_every=4", *local)


def finish_run(config, caches, place):
    """Start the lost run again, and return what process 0 prints."""
    group = begin(config, 2, caches, *words(place))
    outputs = [member.communicate(timeout=TIMEOUT) for member in group.members]
    assert [member.returncode for member in group.members] == [0, 0], outputs
    return outputs[0][0]


def test_run_goes_on_after_a_host_and_its_disk_are_lost(lost, two, config, caches):
    (disk,) = (lost / "local").glob("*/1")
    shutil.rmtree(disk)
    assert "resuming from step 6" in finish_run(config, caches, lost)
    assert results(lost / "run") == results(two)
    assert [row["step"] for row in read(lost / "run" / "metrics.jsonl")] == list(range(1, 9))
    assert not disk.parent.exists(), "a finished run deletes its local checkpoints"


def test_flipped_byte_on_one_host_is_noticed_by_all(lost, config, caches):
    """Each host reads its own copy of replicated arrays; one of them has another value in step 6."""
    shutil.rmtree(lost)
    shutil.copytree(lost.with_name("lost-copy"), lost)
    (file,) = (lost / "local").glob("*/1/6.1.own")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    printed = finish_run(config, caches, lost)
    assert "is not what was saved" in printed
    assert "resuming from step 4" in printed


FAILED = (
    AT_STEP.replace("STEP", "2")
    + """
from jax._src.distributed import global_state
from sdft_jax.errors import SdftError

def act():
    if global_state.process_id == 1:
        raise SdftError("this host alone is full: fix it.") if FAULT == "mistake" else KeyError(FAULT)

sys.exit(cli.main(sys.argv[1:]))
"""
)


@pytest.mark.parametrize(("fault", "code"), [("mistake", 2), ("bug", 1)])
def test_error_of_one_process_ends_the_other_within_a_step(directory, config, caches, fault, code):
    """Process 0 waits in a collective operation, which must not fail before it knows of the error."""
    output = directory / f"failed-{fault}"
    program = ["-c", f"FAULT = {fault!r}" + FAILED]
    codes, errors = begin(config, 2, caches, f"output={output}", *PLAIN, programs=[CLI, program]).end()
    assert codes == [code, code], errors
    (message,) = messages(errors[0])
    assert f"has ended with exit code {code}: see its message." in message
    assert "Traceback" not in errors[0]
    assert ("this host alone is full" if fault == "mistake" else "KeyError: 'bug'") in errors[1]


PROGRESS = r"[\w ]+ \d+/\d+, ([^,]*, )?[\d:]+ elapsed(, [\d:]+ left)?"
"""A line of progress, which only slow work prints."""
GLOO = "[Gloo] Rank 0 is connected to 0 peer ranks. Expected number of connected peer ranks is : 0"
"""A line of Gloo, whose threads split each other's lines."""


def table(text):
    """Return the lines of a table, without progress and the lines of Gloo."""
    lines = [line for line in text.splitlines() if line.strip() and "[Gloo]" not in line]
    lines = [line for line in lines if re.sub(r"\d+", "0", line) not in GLOO]
    return [line for line in lines if not re.fullmatch(PROGRESS, line)]


def test_lines_of_progress_are_recognized():
    lines = ["student 8/10, 0:12 elapsed, 0:03 left", "old skills 10/10, 1:02:03 elapsed"]
    lines += [
        "[Gloo] Rank 3 is connected to 3",
        " peer ranks. Expected number of connected peer ranks is : 3",
    ]
    assert table("\n".join([*lines, "training 3/10, loss 0.1, 0:12 elapsed", "student 0.5 5/10"])) == [
        "student 0.5 5/10"
    ]


def test_two_processes_evaluate_as_one(half_directory, directory, caches, capsys):
    """Two processes with two devices each, ten rows in batches of eight; only process 0 prints and writes."""
    words = [
        str(half_directory),
        "mini:old",
        "--task",
        "mini",
        "data.demonstration=answer",
        "eval.limit=10",
        "eval.batch_size=8",
        "sampling.max_new_tokens=12",
        "model.compute_dtype=float32",
    ]
    files = {
        name: (f"--json={directory / name}.jsonl", f"--out={directory / name}") for name in ("alone", "group")
    }
    group = begin(words[0], 2, caches, *words[1:], *files["group"], command="evaluate")
    outputs = [member.communicate(timeout=TIMEOUT) for member in group.members]
    assert [member.returncode for member in group.members] == [0, 0], outputs
    first, second = (table(text) for text, _ in outputs)
    assert second == [], "process 1 prints nothing"
    assert cli.main(["evaluate", *words, *files["alone"], "mesh.fsdp=1"]) == 0
    alone = capsys.readouterr().out.replace(str(directory / "alone"), str(directory / "group"))
    assert table(alone) == first
    assert read_answers(directory / "alone") == read_answers(directory / "group")
    assert len(read_answers(directory / "alone")) == 20
    assert {"student", "teacher"} <= {word for line in first for word in line.split()}
    rows = (directory / "group.jsonl").read_text()
    assert rows == (directory / "alone.jsonl").read_text()
    assert len(rows.splitlines()) == 10


def test_different_configurations_are_refused(directory, config, caches):
    rates = [("optimizer.learning_rate=2e-3",), ("optimizer.learning_rate=1e-3",)]
    codes, errors = begin(config, 2, caches, f"output={directory / 'differ'}", each=rates).end()
    assert codes == [2, 2], errors
    assert "processes 1 differ from process 0: start all" in errors[0]
    rate = "optimizer.learning_rate is 0.001 on this process and 0.002 on process 0"
    assert f"processes 1 differ from process 0 ({rate}): start all" in errors[1]
    assert not (directory / "differ").exists()


REFUSED = """
import sys
import jax
from sdft_jax.commands.processes import join_processes
from sdft_jax.commands.train import run
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.training import inputs
from sdft_jax.training.liveness import leave

path, place = sys.argv[2:]
read_rows = inputs.read_rows

def missing(path, split):
    raise SdftError(f"{path} does not exist: give a file.")

def other(path, split):
    return list(reversed(read_rows(path, split)))

join_processes(load_config(path, []))
for name, read in {"foreign": read_rows, "missing": missing, "other": other}.items():
    inputs.read_rows = read if jax.process_index() else read_rows
    try:
        run(load_config(path, [f"output={place}/{name}"]))
    except SdftError as error:
        print(f"sdft: {name}: {error}", file=sys.stderr, flush=True)
leave(0)
"""
"""Runs into a directory of others, without the rows on process 1, and with other rows there."""


def test_mistake_on_one_host_is_reported_by_all(directory, config, caches):
    place = directory / "refused"
    (place / "foreign").mkdir(parents=True)
    (place / "foreign" / "thesis.tex").write_text("")
    codes, errors = begin(config, 2, caches, str(place), programs=[["-c", REFUSED]] * 2).end()
    assert codes == [0, 0], errors
    first, second = (messages(text) for text in errors)
    assert len(first) == len(second) == 3, errors
    holds = (
        f"sdft: foreign: output={place}/foreign holds files that do not belong to a run, such as thesis.tex: "
    )
    assert first[0].startswith(holds)
    assert second[0] == "sdft: foreign: process 0 cannot use the run directory: see its message."
    assert first[1] == "sdft: missing: process 1 cannot start: see its message."
    assert second[1] == "sdft: missing: mini:blax does not exist: give a file."
    assert first[2].startswith("sdft: other: processes 1 differ from process 0: start all")
    assert "(the training rows is " in second[2]
    assert os.listdir(place / "foreign") == ["thesis.tex"]
    assert os.listdir(place) == ["foreign"]


def messages(errors):
    """Return the lines of stderr that are messages of sdft."""
    return [line for line in errors.splitlines() if line.startswith("sdft: ")]


def test_coordinator_that_does_not_answer_is_named():
    environment = {"SDFT_COORDINATOR": "127.0.0.1:9", "SDFT_PROCESSES": "2", "SDFT_PROCESS": "1"}
    message = r"the coordinator 127\.0\.0\.1:9 could not be reached within 1 s \(Connection refused\): "
    with pytest.raises(SdftError, match=message):
        processes.initialize(environment | {"SDFT_TIMEOUT": "1"})


def is_listening(address):
    host, _, port = address.partition(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


def test_missing_processes_are_reported(caches):
    """Of three processes, two are started, of which process 1 gives up first; or only process 0."""

    def begin_member(address, number, seconds):
        environment = member_environment(address, 3, number) | {"SDFT_TIMEOUT": str(seconds)}
        return start(
            ["-c", "from sdft_jax.training.processes import initialize as i; i()"], caches, environment
        )

    def check(process, address, number):
        code, errors = finish(process)
        assert code == 1, errors
        (message,) = errors.splitlines()
        beginning = f"sdft: process {number} has waited 8 s at {address}, and not all of the 3 processes have"
        assert message.startswith(f"{beginning} joined: ")
        assert message.endswith("; SDFT_TIMEOUT=SECONDS sets a longer timeout.")

    address, other = free_address(), free_address()
    coordinator, alone = begin_member(address, 0, 100_000), begin_member(other, 0, 8)
    wait_until(lambda: is_listening(address), coordinator)
    check(begin_member(address, 1, 8), address, 1)
    coordinator.kill()
    coordinator.communicate()
    check(alone, other, 0)


@pytest.mark.parametrize("name", ["SDFT_PROCESSES", "SDFT_PROCESS"])
def test_missing_variable_is_named(name):
    environment = {"SDFT_COORDINATOR": "a:1", "SDFT_PROCESSES": "2", "SDFT_PROCESS": "0"}
    with pytest.raises(SdftError, match=f"^{name}='' is not a number: "):
        processes.initialize({key: value for key, value in environment.items() if key != name})


@pytest.mark.parametrize("address", ["somewhere", ":80", "host:", "host:port"])
def test_invalid_address_is_refused(address):
    environment = {"SDFT_COORDINATOR": address, "SDFT_PROCESSES": "2", "SDFT_PROCESS": "1"}
    with pytest.raises(SdftError, match=f"^SDFT_COORDINATOR='{address}' is not an address: give HOST:PORT"):
        processes.initialize(environment)


def test_finished_processes_wait_long_for_the_others(monkeypatch):
    """At JAX's own timeout, 300 s, all processes would be aborted while process 0 exports or uploads."""
    given = {}
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **arguments: given.update(arguments))
    monkeypatch.setattr(processes, "join", lambda *_: None)
    environment = {"SDFT_COORDINATOR": "a:1", "SDFT_PROCESSES": "2", "SDFT_PROCESS": "0"}
    processes.initialize(environment)
    assert given["shutdown_timeout_seconds"] >= 24 * 3600


def test_processes_that_have_joined_do_not_join_again(monkeypatch):
    monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: True)
    processes.initialize({"SDFT_COORDINATOR": "a:1", "SDFT_PROCESSES": "2", "SDFT_PROCESS": "0"})


def test_single_process_joins_none():
    processes.initialize({})
    processes.require_agreement({"train": {"seed": 1}})


def test_code_digest_depends_on_all_source_files(tmp_path, monkeypatch):
    package = Path(processes.__file__).parents[1]
    copy = tmp_path / "sdft_jax"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    unchanged = processes.code_digest()
    monkeypatch.setattr(processes, "__file__", str(copy / "training" / "processes.py"))
    assert re.fullmatch("[0-9a-f]{16}", unchanged)
    assert unchanged == processes.code_digest()
    for name in ("types.py", "algorithm/update.py"):
        (copy / name).write_text((package / name).read_text() + "\n")
        assert processes.code_digest() != unchanged
        (copy / name).write_text((package / name).read_text())
    assert processes.code_digest() == unchanged
