"""Several processes of one run on this machine."""

import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from runs import content_of, read, start

DEVICES = 2
"""Of each process."""


@dataclasses.dataclass
class Group:
    """Processes of one run."""

    members: list[subprocess.Popen]

    def end(self, seconds=240):
        """Exit codes and stderr of all."""
        outputs = [member.communicate(timeout=seconds) for member in self.members]
        return [member.returncode for member in self.members], [errors for _, errors in outputs]


def begin(
    config: str,
    processes: int,
    caches: Path,
    *overrides: str,
    each: Sequence[Sequence[str]] = (),
    of: int | None = None,
    command: str = "train",
    environments: Sequence[Mapping[str, str]] = (),
) -> Group:
    """Start them.

    Args:
        config, processes, caches, overrides: what all have in common.
        each, environments: further overrides and variables of every one.
        of: counts also those that never come.
        command: of `sdft`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={DEVICES}")
    shared = {
        "SDFT_COORDINATOR": f"127.0.0.1:{port}",
        "SDFT_PROCESSES": str(of or processes),
        "XLA_FLAGS": flags,
    }
    members = []
    for number in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            more = environments[number] if environments else {}
            for key, value in {**shared, "SDFT_PROCESS": str(number), **more}.items():
                patch.setenv(key, value)
            own = each[number] if each else ()
            members.append(start(["-m", "sdft_jax.cli", command, config, *overrides, *own], caches))
    return Group(members)


def wait_for_step(output: Path, step: int, group: Group, seconds=200) -> None:
    """Until the checkpoint of that step is complete."""
    until = time.monotonic() + seconds
    while not (output / "checkpoints" / str(step) / "manifest.json").exists():
        assert time.monotonic() < until, "no such checkpoint"
        assert all(member.poll() is None for member in group.members), [
            m.stderr.read() for m in group.members
        ]
        time.sleep(0.02)


def results(output: Path):
    """Everything that a run says and leaves, without timings."""
    return {
        "metrics": read(output / "metrics.jsonl"),
        "evaluations": read(output / "evaluations.jsonl"),
        "model": (output / "model" / "model.safetensors").read_bytes(),
        "rollouts": content_of(output / "rollouts"),
    }
