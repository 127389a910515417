"""Several processes as one program: joining, and checking that configuration and code agree.

With one process, these functions do nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdft_jax.config.overrides import flatten
from sdft_jax.errors import SdftError
from sdft_jax.training.liveness import LOST, join

Result = TypeVar("Result")

COORDINATOR, PROCESSES, PROCESS, TIMEOUT = (
    "SDFT_COORDINATOR",
    "SDFT_PROCESSES",
    "SDFT_PROCESS",
    "SDFT_TIMEOUT",
)
"""Environment variables: host:port of process 0; the number of processes; the index of this one, from 0; the
timeout in seconds."""

_MARGIN = 60
"""Number of seconds by which JAX's timeout exceeds SDFT_TIMEOUT."""
_LONGEST_END = 7 * 24 * 3600
"""Number of seconds that finished processes wait for the others; process 0 may upload a model for hours.
At the timeout, JAX aborts all of them."""


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of this run, before JAX initializes its devices.

    SDFT_COORDINATOR, SDFT_PROCESSES and SDFT_PROCESS determine them, or else the cluster that JAX detects: a
    TPU pod, GKE, SLURM, Open MPI. A single process joins none, and so does one that has already joined. If a
    process is missing at the timeout, this process ends with a message and exit code 1.

    Raises:
        SdftError: a variable is missing or not a number, or the coordinator does not answer in time.
    """
    if jax.distributed.is_initialized():  # by a program that calls this library, or by an earlier command
        return
    arguments: dict[str, Any] = {}
    if COORDINATOR in environment:
        numbers = {name: _number(environment, name) for name in (PROCESSES, PROCESS)}
        arguments = dict(
            coordinator_address=environment[COORDINATOR],
            num_processes=numbers[PROCESSES],
            process_id=numbers[PROCESS],
        )
    elif not _is_in_cluster():
        return
    seconds = _number(environment, TIMEOUT) if TIMEOUT in environment else 300
    if arguments.get("process_id"):
        _await_coordinator(environment[COORDINATOR], seconds)
    with _deadline(seconds):
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=seconds + _MARGIN,
            shutdown_timeout_seconds=_LONGEST_END,
        )
    from jax._src.distributed import global_state as state  # there is no public API

    host = str(state.coordinator_address).rpartition(":")[0].strip("[]")
    join(state.client, state.process_id, state.num_processes, host)


@contextlib.contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    """End the process with a message if not all processes have joined at the timeout.

    JAX's own timeout, which is later, aborts the process with a C++ stack trace, and raises no exception.
    """
    timer = threading.Timer(seconds, _give_up, [seconds])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(seconds: int) -> None:
    from jax._src.distributed import global_state  # there is no public API

    print(
        f"sdft: process {global_state.process_id} has waited {seconds} s at "
        f"{global_state.coordinator_address or 'the coordinator'}, and not all of the "
        f"{global_state.num_processes} processes have joined: check that each process has been started with "
        f"the same address and number of processes, and can reach the address; {TIMEOUT}=SECONDS sets a "
        "longer timeout.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


def _await_coordinator(address: str, seconds: int) -> None:
    """Wait until the coordinator listens; JAX would abort the process with a stack trace."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SdftError(f"{COORDINATOR}={address!r} is not an address: give HOST:PORT of process 0.")
    until, reason = time.monotonic() + seconds, ""
    while time.monotonic() < until:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
                return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
    raise SdftError(
        f"the coordinator {address} could not be reached within {seconds} s ({reason}): check that process "
        f"0 is running there and that its port is open; {TIMEOUT}=SECONDS sets a longer timeout."
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdigit():
        raise SdftError(
            f"{name}={text!r} is not a number: set {PROCESSES} to the number of processes and {PROCESS} to "
            f"the index of this process, from 0; {TIMEOUT}, if set, is a number of seconds."
        )
    return int(text)


def _is_in_cluster() -> bool:
    """Return True if `jax.distributed.initialize` would detect several processes.

    JAX has no public function for this.
    """
    from jax._src.clusters import ClusterEnv

    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    cluster = next((kind for kind in kinds if kind.is_env_present()), None)
    return cluster is not None and cluster.get_process_count() > 1


def require_agreement(config: Mapping[str, Any]) -> None:
    """Require the same configuration, code and jax version on all processes.

    Raises:
        SdftError: on every process, with the keys in which this one differs from process 0.
    """
    if jax.process_count() > 1:
        code = {"the code of sdft_jax": code_digest(), "jax": jax.__version__}
        require_same(flatten(config) | code, "with the same configuration and the same installation")


def together(work: Callable[[], Result]) -> Result:
    """Return `work()`, or raise on every process if it raises SdftError on one.

    Without this, the others would wait for the process that has ended.

    Raises:
        SdftError: of this process, or one that names the processes whose message tells more.
    """
    if jax.process_count() == 1:
        return work()
    failure, result = None, None
    try:
        result = work()
    except SdftError as error:
        failure = error
    failed = gathered(failure is not None)
    if failure:
        raise failure
    if any(failed):
        numbers = ", ".join(str(process) for process in np.flatnonzero(failed))
        raise SdftError(f"process {numbers} cannot start: see its message.")
    return cast(Result, result)


def require_same(values: Mapping[str, Any], start: str) -> None:
    """Require the same values on all processes.

    Args:
        values: JSON values by the names that messages use.
        start: the remedy, as in "start all processes ...".

    Raises:
        SdftError: on every process, with the keys in which this one differs from process 0.
    """
    if jax.process_count() == 1:
        return
    local = json.loads(json.dumps(dict(values)))  # tuples become lists, as in process 0's text
    first = agreed(local)
    different = sorted(key for key in local.keys() | first.keys() if local.get(key) != first.get(key))
    counts = gathered(len(different))
    if not any(counts):
        return
    others = ", ".join(str(process) for process in np.flatnonzero(counts))
    details = "; ".join(
        f"{key} is {local.get(key)!r} on this process and {first.get(key)!r} on process 0"
        for key in different[:4]
    )
    raise SdftError(
        f"processes {others} differ from process 0{f' ({details})' if different else ''}: start all {start}."
    )


def code_digest() -> str:
    """Return a digest of all source files of this package."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def agreed(value: Result) -> Result:
    """Return process 0's JSON value on all processes, which decide by it."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(length, np.uint8)
    padded[: min(length, len(data))] = data[:length]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def gathered(value: Result) -> list[Result]:
    """Return the JSON value of each process on all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
