"""Real processes on one machine: the same run as one process, killed, stopped, resumed in other numbers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from process_groups import begin, results, wait_for_step
from runs import start, step_names, write_config
from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.training import processes

SETTINGS = ("mesh.data=-1", "mesh.fsdp=2", "train.steps=10", "train.save_every=1", "checkpoint.keep_last=99")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def config(directory, half_directory):
    return write_config(directory / "run.yaml", half_directory, directory / "unused", *SETTINGS)


@pytest.fixture(scope="module")
def two(directory, config, caches):
    """A run of two processes, undisturbed."""
    group = begin(config, 2, caches, f"output={directory / 'two'}")
    codes, errors = group.end()
    assert codes == [0, 0], errors
    return directory / "two"


def assert_close(one, other):
    """The same losses to 1e-5, the same words."""
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


def test_two_processes_are_as_one(two, directory, config, shared_compilations):
    output = directory / "one"
    assert cli.main(["train", config, f"output={output}", "mesh.data=2"]) == 0
    assert_close(two, output)
    assert step_names(two) == step_names(output) == list(range(1, 11))


@pytest.fixture(scope="module")
def killed(two, directory, config, caches):
    """Two processes of which one was killed in mid-run: what is left on disk."""
    output = directory / "killed"
    group = begin(config, 2, caches, f"output={output}")
    wait_for_step(output, 2, group)
    group.members[1].kill()
    time.sleep(0.2)
    group.members[0].kill()  # it would wait for the other; a launcher ends all
    group.end()
    assert 2 in step_names(output)
    assert not (output / "model").exists()
    subprocess.run(["cp", "-r", str(output), str(directory / "four")], check=True)
    return output


def test_killed_and_started_again_it_ends_bit_identical(killed, two, config, caches):
    codes, errors = begin(config, 2, caches, f"output={killed}").end()
    assert codes == [0, 0], errors
    assert results(killed) == results(two)


def test_four_processes_go_on_where_two_were_killed(killed, two, directory, config, caches):
    output = directory / "four"
    group = begin(config, 4, caches, f"output={output}", "mesh.fsdp=4")
    codes, errors = group.end()
    assert codes == [0] * 4, errors
    assert_close(two, output)


def test_sigterm_on_one_host_stops_all_after_the_same_step(two, directory, config, caches):
    output = directory / "stopped"
    group = begin(config, 2, caches, f"output={output}")
    wait_for_step(output, 1, group)
    group.members[1].send_signal(signal.SIGTERM)
    codes, errors = group.end()
    assert codes == [143, 143], errors
    told = [
        [line for line in text.splitlines() if "stopped by SIGTERM after step" in line] for text in errors
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 1
    last = max(step_names(output))
    assert f"after step {last};" in told[0][0]
    assert last < 10
    # One process goes on, on a mesh of its own.
    flags = os.environ["XLA_FLAGS"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", flags.replace("device_count=8", "device_count=1"))
        alone = start(
            ["-m", "sdft_jax.cli", "train", config, f"output={output}", "mesh.data=1", "mesh.fsdp=1"], caches
        )
        _, errors = alone.communicate(timeout=240)
    assert alone.returncode == 0, errors
    assert_close(two, output)


def printed(text):
    """Lines, without those of Gloo, whose threads break each other's."""
    rest = r"\d+ is connected to \d+ peer ranks\. Expected number of connected peer ranks is : \d+"
    lines = [line for line in text.splitlines() if line.strip() and "[Gloo]" not in line]
    return [line for line in lines if not re.fullmatch(rest, line)]


def test_two_processes_evaluate_as_one(half_directory, directory, caches, capsys):
    """Two by two devices, ten rows in batches of eight: answers, and the table of process 0 alone."""
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
    group = begin(words[0], 2, caches, *words[1:], f"--json={directory / 'two.jsonl'}", command="evaluate")
    outputs = [member.communicate(timeout=240) for member in group.members]
    assert [member.returncode for member in group.members] == [0, 0], outputs
    told, silent = (printed(text) for text, _ in outputs)
    assert silent == []
    assert cli.main(["evaluate", *words, f"--json={directory / 'one.jsonl'}", "mesh.fsdp=1"]) == 0
    assert printed(capsys.readouterr().out) == told
    rows = (directory / "two.jsonl").read_text()
    assert rows == (directory / "one.jsonl").read_text()
    assert len(rows.splitlines()) == 10


def test_processes_with_other_configurations_are_refused(directory, config, caches):
    rates = [("optimizer.learning_rate=2e-3",), ("optimizer.learning_rate=1e-3",)]
    codes, errors = begin(config, 2, caches, f"output={directory / 'differ'}", each=rates).end()
    assert codes == [2, 2], errors
    assert "processes 1 differ from process 0: start all" in errors[0]
    assert "optimizer.learning_rate is 0.001 here and 0.002 there" in errors[1]
    assert not (directory / "differ").exists()


def test_a_coordinator_that_does_not_answer_is_named_with_the_time(config, caches):
    environment = {
        "SDFT_COORDINATOR": "127.0.0.1:9",
        "SDFT_PROCESSES": "2",
        "SDFT_PROCESS": "1",
        "SDFT_TIMEOUT": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        process = start(["-m", "sdft_jax.cli", "train", config], caches)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("sdft: ")]
    assert "the coordinator 127.0.0.1:9 could not be reached within 1 s" in sentence


def test_processes_that_never_come_are_told_with_address_and_time(config, caches):
    """Two of three are there: process 0, which listens, and one that has reached it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDFT_TIMEOUT", "8")
        group = begin(config, 2, caches, of=3)
    began = time.monotonic()
    codes, errors = group.end(100)
    assert codes == [1, 1], errors
    assert time.monotonic() - began < 60  # JAX's own deadline is later
    address = re.search(r"127\.0\.0\.1:\d+", errors[0])[0]
    for number, text in enumerate(errors):
        (sentence,) = text.splitlines()
        assert sentence.startswith(
            f"sdft: process {number} has waited 8 s at {address}, and not all of the 3 "
        )
        assert "SDFT_TIMEOUT=SECONDS waits longer" in sentence


@pytest.mark.parametrize("name", ["SDFT_PROCESSES", "SDFT_PROCESS"])
def test_a_variable_that_is_missing_is_named(name):
    environment = {"SDFT_COORDINATOR": "a:1", "SDFT_PROCESSES": "2", "SDFT_PROCESS": "0"}
    with pytest.raises(SdftError, match=f"{name}='' is no number"):
        processes.initialize({key: value for key, value in environment.items() if key != name})


def test_one_process_joins_nobody():
    processes.initialize({})
    processes.require_agreement({"train": {"seed": 1}})


def test_the_code_is_known_by_its_content(tmp_path):
    command = [sys.executable, "-c", "from sdft_jax.distributed import code_digest; print(code_digest())"]
    package = Path(processes.__file__).parent
    copy = tmp_path / "sdft_jax"
    subprocess.run(["cp", "-r", str(package), str(copy)], check=True)

    def digest():
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert digest() == processes.code_digest()
    (copy / "update.py").write_text((package / "update.py").read_text() + "\n")
    assert digest() != processes.code_digest()


def test_arrays_are_spread_and_collected_whole():
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), "x"), PartitionSpec("x"))
    tree = {"a": np.arange(16).reshape(8, 2), "b": np.arange(8) % 2 == 0}
    placed = processes.spread(tree, sharding)
    assert all(x.sharding == sharding for x in jax.tree.leaves(placed))
    back = processes.collect(placed)
    assert json.dumps({k: v.tolist() for k, v in back.items()}) == json.dumps(
        {k: v.tolist() for k, v in tree.items()}
    )
