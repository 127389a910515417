"""Seconds and peak memory of a whole training step, compared with TRL's SDFTTrainer.

Both libraries train the same checkpoint on the same rows with the same method: one rollout per prompt from
the library's own sampler, reverse KL over the full vocabulary, AdamW, and an update of the EMA teacher after
each step. The dtype is float32 on a CPU and bfloat16 on a GPU, also for weights, moments and teacher. Each
run is a separate process with its own peak memory. The two libraries alternate, so drift in the machine's
speed affects both.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.stream import make_console
from sdft_jax.studies.bench.models import SIZES
from sdft_jax.studies.bench.results import Measured, conditions, parser, positive, publish, shape

WARM_UP = 2
"""The number of uncounted steps at the beginning, which compile and fill caches."""
TOLERANCE = 1e-4
"""The maximum relative difference of loss and gradient, in float32."""
SIDES = ("ours", "trl")
Run = Mapping[str, Any]
"""The result that a process of trl_sides.py writes."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload for both libraries."""

    size: str
    batch: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.size}, {self.batch} x ({self.prompt} + {self.new})"


def main(argv: Sequence[str]) -> None:
    """Run the cases that the command line selects.

    Raises:
        SdftError: TRL is not installed, a process fails, or the libraries ran on different kinds of device.
    """
    args = _parse_arguments(argv)
    missing = [name for name in ("torch", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        raise SdftError(f"sdft bench trl requires {' and '.join(missing)}: run pip install -e '.[bench]'.")
    cases = [Case(size, *shape) for size in args.models for shape in args.shapes]
    start_conditions, measurements = conditions(), []
    differences = cross_check(args.dtype)
    console = make_console()
    console.print(
        "relative difference from TRL with the same weights and completions: "
        f"loss {differences['loss']:.1e}, gradient {differences['gradient']:.1e}",
        highlight=False,
    )
    with tempfile.TemporaryDirectory() as scratch, bar("trl", 2 * args.rounds * len(cases)) as show:
        for number, case in enumerate(cases):
            report = functools.partial(_report, show, 2 * args.rounds * number, case)
            runs = measure(case, Path(scratch) / str(number), args.rounds, args.steps, args.dtype, report)
            measurements.append((case, runs))
        show(2 * args.rounds * len(cases), "")
    compared = [compare(case, runs) for case, runs in measurements]
    machine = "; ".join(measurements[0][1][side][0]["machine"] for side in SIDES)
    case_details = [dataclasses.asdict(case) | {"runs": runs} for case, runs in measurements]
    details = {"apart": differences, "cases": case_details}
    rows, ratios = [row for row, _ in compared], [ratio for _, bars in compared for ratio in bars]
    publish(Measured("trl", rows, ratios, details, machine, start_conditions), args.output)


def cross_check(dtype: str) -> Run:
    """Return the relative differences of loss and gradient from TRL's, computed by trl_check.py.

    Raises:
        SdftError: a difference is larger than `TOLERANCE`; the libraries then compute different updates.
    """
    case = Case("0.2M", 4, 40, 8)
    with tempfile.TemporaryDirectory() as scratch:
        settings = _settings(case, Path(scratch), 1, dtype)
        _process("prepare", settings, Path(scratch) / "prepare")
        differences = _process("check", settings, Path(scratch) / "check")
    if max(differences.values()) > TOLERANCE:
        raise SdftError(
            "sdft bench trl: with the same weights and completions, loss and gradient differ from TRL's by "
            f"{differences} (relative), more than {TOLERANCE}: the installed TRL computes a different loss; "
            "run pip install 'trl==1.16.*'."
        )
    return differences


def _settings(case: Case, directory: Path, steps: int, dtype: str) -> dict[str, Any]:
    return dataclasses.asdict(case) | {
        "model": str(directory / "model"),
        "rows": str(directory / "rows.jsonl"),
        "steps": steps,
        "dtype": dtype,
    }


def _report(show: Callable[[int, str], None], before: int, case: Case, done: int, side: str) -> None:
    show(before + done, f"{case}: {side}")


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("trl", __doc__)
    options.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["0.2M", "1M", "4M"],
        help="random Qwen3 models, named by their number of parameters (default: 0.2M 1M 4M)",
    )
    options.add_argument(
        "--shapes",
        nargs="+",
        type=functools.partial(shape, count=3),
        metavar="BxPxN",
        default=[(8, 64, 64), (32, 64, 64), (8, 256, 128)],
        help="prompts per step, tokens per prompt, tokens per completion "
        "(default: 8x64x64 32x64x64 8x256x128)",
    )
    options.add_argument("--steps", type=positive, default=6, help="measured steps per process (default: 6)")
    options.add_argument(
        "--rounds", type=positive, default=2, help="processes of each library, which alternate (default: 2)"
    )
    options.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="default: auto, which is float32 on a CPU and bfloat16 on a GPU",
    )
    return options.parse_args(argv)


def measure(
    case: Case, directory: Path, rounds: int, steps: int, dtype: str, report: Callable[[int, str], None]
) -> dict[str, list[Run]]:
    """Run the processes of both libraries, which alternate, and return their results by side."""
    directory.mkdir(parents=True)
    settings = _settings(case, directory, steps + WARM_UP, dtype)
    report(0, "model")
    _process("prepare", settings, directory / "prepare")
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for round_ in range(rounds):
        for place, side in enumerate(SIDES):
            report(2 * round_ + place, side)
            runs[side].append(_process(side, settings, directory / f"{side}{round_}"))
    return runs


def _process(side: str, settings: Mapping[str, Any], directory: Path) -> Run:
    directory.mkdir()
    file, result = directory / "settings.json", directory / "result.json"
    paths = {"output": str(directory / "run"), "result": str(result)}
    file.write_text(json.dumps({**settings, **paths}), encoding="utf-8")
    environment = {"CUDA_VISIBLE_DEVICES": "0", "TRL_EXPERIMENTAL_SILENCE": "1"} | os.environ
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # each process compiles, as a first run does
    if side == "prepare":
        environment["JAX_PLATFORMS"] = "cpu"
    process = subprocess.run(
        [sys.executable, "-m", "sdft_jax.studies.bench.trl_sides", side, str(file)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if process.returncode:
        sys.stderr.write(process.stderr)
        raise SdftError(f"sdft bench trl: the process `{side}` failed; its error output is above.")
    return json.loads(result.read_text(encoding="utf-8"))


def compare(case: Case, runs: Mapping[str, Sequence[Run]]) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratios, TRL over sdft_jax: medians of the counted steps, and peak memory.

    Raises:
        SdftError: the libraries ran on different kinds of device.
    """
    kinds = [{(run["dtype"], run["device_peak"] is None) for run in runs[side]} for side in SIDES]
    if kinds[0] != kinds[1]:
        raise SdftError(
            "sdft bench trl: one library ran on a GPU and the other did not: install jax and torch with GPU "
            "support, or set CUDA_VISIBLE_DEVICES= and JAX_PLATFORMS=cpu to run both on the CPU."
        )
    seconds = {side: [statistics.median(run["seconds"][WARM_UP:]) for run in runs[side]] for side in SIDES}
    memory = {
        side: max(run["peak"] if run["device_peak"] is None else run["device_peak"] for run in runs[side])
        / 2**20
        for side in SIDES
    }
    speedups = [b / a for a, b in zip(*seconds.values(), strict=True)]
    ours, trl = (statistics.median(seconds[side]) for side in SIDES)
    memory_ratio = memory["trl"] / memory["ours"]
    first = {side: statistics.median(run["seconds"][0] for run in runs[side]) for side in SIDES}
    row = {
        "model": case.size,
        "prompts": case.batch,
        "tokens": f"{case.prompt} + {case.new}",
        "sdft_jax": f"{ours:.3g} s",
        "TRL": f"{trl:.3g} s",
        "times faster": f"{statistics.median(speedups):.1f} ({min(speedups):.1f}-{max(speedups):.1f})",
        "sdft_jax, peak": f"{memory['ours']:.0f} MiB",
        "TRL, peak": f"{memory['trl']:.0f} MiB",
        "times less": f"{memory_ratio:.2f}",
        "first step": f"{first['ours']:.1f} s",
        "TRL's first": f"{first['trl']:.1f} s",
    }
    return row, [
        Bar(str(case), "seconds per step", statistics.median(speedups)),
        Bar(str(case), "peak memory", memory_ratio),
    ]
