"""Several processes of one run on this machine."""

import dataclasses
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from runs import content_of, finish, read, start, wait_until

DEVICES = 2
"""The number of devices of each process."""
CLI = ("-m", "sdft_jax.cli")
"""The arguments of Python that start `sdft`."""


@dataclasses.dataclass
class Group:
    """The processes of one run."""

    members: list[subprocess.Popen]

    def end(self) -> tuple[list[int], list[str]]:
        """Wait for the end of all processes, and return their exit codes and stderr."""
        try:
            outputs = [finish(member) for member in self.members]
        finally:
            self.kill()
        return [code for code, _ in outputs], [errors for _, errors in outputs]

    def kill(self) -> None:
        """Send SIGKILL to the processes that still run."""
        for member in self.members:
            member.kill()


def begin(
    config: str,
    processes: int,
    caches: Path,
    *overrides: str,
    each: Sequence[Sequence[str]] = (),
    programs: Sequence[Sequence[str]] = (),
    environments: Sequence[Mapping[str, str]] = (),
    command: str = "train",
) -> Group:
    """Start the processes of a run.

    Args:
        config: the path of a configuration, or a model.
        processes: the number of processes.
        caches: the directory of compilation caches.
        overrides: overrides for all processes.
        each: more overrides for each process.
        programs: the arguments of Python for each process, in place of `CLI`.
        environments: more environment variables for each process.
        command: the command of `sdft`.
    """
    address = free_address()
    members = []
    for number in range(processes):
        environment = member_environment(address, processes, number)
        environment |= environments[number] if environments else {}
        program = programs[number] if programs else CLI
        more = each[number] if each else ()
        members.append(start([*program, command, config, *overrides, *more], caches, environment))
    return Group(members)


def free_address() -> str:
    """Return HOST:PORT of this machine, with a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def member_environment(address: str, processes: int, number: int) -> dict[str, str]:
    """Return the environment of process `number` of a run whose coordinator has this address."""
    return os.environ | {
        "SDFT_COORDINATOR": address,
        "SDFT_PROCESSES": str(processes),
        "SDFT_PROCESS": str(number),
        "XLA_FLAGS": devices_flag(DEVICES),
    }


def devices_flag(number: int) -> str:
    """Return this process's XLA_FLAGS with another number of CPU devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={number}")


def wait_for_step(output: Path, step: int, group: Group) -> None:
    """Wait until the checkpoint of a step is complete."""
    wait_until((output / "checkpoints" / str(step)).exists, *group.members)


def results(output: Path) -> dict[str, object]:
    """Return everything that a run writes, without timings and checkpoints."""
    return {
        "metrics": read(output / "metrics.jsonl"),
        "evaluations": read(output / "evaluations.jsonl"),
        "model": (output / "model" / "model.safetensors").read_bytes(),
        "rollouts": content_of(output / "rollouts"),
    }
