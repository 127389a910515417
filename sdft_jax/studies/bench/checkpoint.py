"""Time from a save to its commit, compared with a commit that waits until everything has been read back.

The digests of the arrays are computed on the devices. The alternative, which this library had before, is that
process 0 reads the files of all processes and sums them before the commit, while the others wait. Both are
timed in the same run, with the same files. The files are on a local disk, whose cache serves the reads; from
a bucket they would cross the network.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish
from sdft_jax.training.processes import COORDINATOR, PROCESS, PROCESSES

TIMINGS = "timings.json"
"""Name of the file with the seconds."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A state, saved by a number of processes."""

    processes: int
    mebibytes: int

    def __str__(self) -> str:
        return f"{self.processes} x process, {self.mebibytes} MiB"


def main(argv: Sequence[str]) -> None:
    """Run the cases that the command line selects."""
    args = _parse_arguments(argv)
    start = conditions()
    cases = [Case(processes, size) for processes in args.processes for size in args.mebibytes]
    rows, bars, details = each_case("checkpoint", cases, lambda case, _: _measure_case(case, args.repeats))
    publish(Measured("checkpoint", rows, bars, details, describe_hardware(), start), args.output)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("checkpoint", __doc__)
    options.add_argument(
        "--processes",
        nargs="+",
        type=positive,
        default=[1, 2, 4],
        help="numbers of processes (default: 1 2 4)",
    )
    options.add_argument(
        "--mebibytes",
        nargs="+",
        type=positive,
        default=[64, 256, 1024],
        help="sizes of the whole state (default: 64 256 1024)",
    )
    options.add_argument("--repeats", type=positive, default=3, help="saves of a state (default: 3)")
    return options.parse_args(argv)


def _measure_case(case: Case, repeats: int) -> tuple[dict[str, Any], list[Bar], Any]:
    saves = measure(case, repeats)
    names = ("digests", "returned", "committed", "read back", "restored")
    median = {name: statistics.median(save[name] for save in saves) for name in names}
    ratio = (median["committed"] - median["digests"] + median["read back"]) / median["committed"]
    row = {
        "processes": str(case.processes),
        "MiB": str(case.mebibytes),
        "digests": f"{median['digests']:.2f} s",
        "save returns": f"{median['returned']:.2f} s",
        "commit": f"{median['committed']:.2f} s",
        "reading back": f"{median['read back']:.2f} s",
        "with it / without": f"{ratio:.2f}",
        "restore": f"{median['restored']:.2f} s",
    }
    return row, [Bar(str(case), "commit that reads back", ratio)], dataclasses.asdict(case) | {"saves": saves}


def measure(case: Case, repeats: int) -> list[dict[str, float]]:
    """Return the seconds of the parts of each save, after an uncounted one, measured by process 0."""
    with tempfile.TemporaryDirectory() as directory:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", __name__, directory, str(case.mebibytes), str(repeats + 1)]
        members = [
            subprocess.Popen(
                command,
                env=_environment(address, case.processes, number),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            for number in range(case.processes)
        ]
        outputs = [member.communicate() for member in members]
        for member, (_, errors) in zip(members, outputs, strict=True):
            if member.returncode:
                sys.stderr.write(errors)
                raise SdftError(
                    f"{case}: a process ended with exit code {member.returncode}: see its output."
                )
        return read_json(Path(directory, TIMINGS), "run the benchmark again", list)[1:]


def _environment(address: str, processes: int, number: int) -> dict[str, str]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    if processes > 1:
        environment |= {COORDINATOR: address, PROCESSES: str(processes), PROCESS: str(number)}
    return environment


def _work(directory: str, mebibytes: int, saves: int) -> None:
    """Save a state repeatedly as one of the processes; process 0 writes the seconds."""
    from sdft_jax.training.processes import initialize

    initialize()
    import jax
    from etils import epath

    from sdft_jax.training import checkpoint
    from sdft_jax.training.checksums import seal_directory
    from sdft_jax.training.digests import describe

    state = _state(mebibytes)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    iterator = types.SimpleNamespace(get_state=dict, set_state=lambda _: None)
    timings = []
    with checkpoint.open_manager(epath.Path(directory) / "checkpoints", keep_last=1) as manager:
        for step in range(saves):
            marks = [time.perf_counter()]
            describe(state)
            marks.append(time.perf_counter())
            checkpoint.save(manager, step, state, iterator, {"step": step})
            marks.append(time.perf_counter())
            checkpoint.wait(manager)
            marks.append(time.perf_counter())
            if jax.process_index() == 0:
                seal_directory(manager.directory / str(step))
            marks.append(time.perf_counter())
            checkpoint.restore_latest(manager, abstract, iterator)
            marks.append(time.perf_counter())
            timings.append(_durations(marks))
    if jax.process_index() == 0:
        Path(directory, TIMINGS).write_text(json.dumps(timings), encoding="utf-8")


def _durations(marks: Sequence[float]) -> dict[str, float]:
    start, described, returned, committed, summed, restored = marks
    return {
        "digests": described - start,
        "returned": returned - described,
        "committed": committed - described,
        "read back": summed - committed,
        "restored": restored - summed,
    }


def _state(mebibytes: int) -> Any:
    """Return a state of incompressible arrays that are split over all devices."""
    import jax
    import jax.numpy as jnp

    from sdft_jax.sharding import Sharding, make_mesh
    from sdft_jax.types import TrainState

    sharding = Sharding(make_mesh(fsdp=jax.device_count()))
    arrays, rows = 4, 1024
    shape = (rows, mebibytes * (1 << 20) // (4 * rows * arrays))
    make = jax.jit(
        lambda seed: jax.random.bits(jax.random.key(seed, impl="threefry2x32"), shape, jnp.uint32),
        out_shardings=sharding.named("embed", None),
    )
    return TrainState(
        step=jax.device_put(jnp.int32(1), sharding.replicated),
        params={str(index): make(index) for index in range(arrays)},
        frozen={},
        teacher={},
        opt_state=(),
        key=jax.device_put(jnp.zeros(2, jnp.uint32), sharding.replicated),
    )


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
