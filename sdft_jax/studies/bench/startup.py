"""Startup times: the console command, the first step of a run and of a resumed run, and compilation.

The benchmark has three parts, all of which run on the CPU:
  console  `sdft --help` and `import sdft_jax` in new processes, which alternate with processes that only
           run `import jax` and with an empty program
  run      the time from the start of `sdft train` on the mini model to its first line of metrics: with an
           empty compilation cache, with a warm one, and in a resumed run
  depth    compiling the whole update of a small model of 2 to 32 layers: for a TPU ahead of time, if its
           compiler is installed, and for a CPU, on which decoding may unroll the layers
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.sinks import METRICS, read_jsonl
from sdft_jax.reporting.stream import make_console
from sdft_jax.studies.bench.depth import depths, devices_of
from sdft_jax.studies.bench.results import RATIO, Measured, Part, conditions, parser, positive, publish, row

PARTS = ("console", "run", "depth")
COMMANDS: Mapping[str, Sequence[str]] = {
    "sdft --help": ("-m", "sdft_jax.cli", "--help"),
    "import sdft_jax": ("-c", "import sdft_jax"),
    "import jax": ("-c", "import jax"),
    "an empty program": ("-c", "pass"),
}
"""Name -> arguments of the Python interpreter. The last two are the baselines."""
RUN = {
    "model": {"path": "mini", "compute_dtype": "float32", "remat": "none"},
    "data": {"path": "mini:blax", "max_prompt": 64, "max_teacher_prompt": 96},
    "sampling": {"max_new_tokens": 16},
    "train": {"steps": 1000, "batch_size": 8, "save_every": 0, "rollouts_every": 0, "phases_every": 0},
    "mesh": {"fsdp": 1},
}
"""The settings of quickstart.yaml with smaller steps; the run is stopped after its first step."""
STOPPED = 143
"""The exit code of a run that was stopped by SIGTERM and saved a checkpoint."""


def main(argv: Sequence[str]) -> None:
    """Measure the parts that the command line selects.

    Raises:
        SdftError: a process fails, or the TPU compiler for `--topology` is not installed.
    """
    args = _parse_arguments(argv)
    jax.config.update("jax_platforms", "cpu")
    targets = devices_of(args.topology) if "depth" in args.parts else {}
    steps = {
        "console": args.rounds * len(COMMANDS) + 1,
        "run": 3,
        "depth": len(targets) * (args.compilations * len(args.depths) + 1),
    }
    start_conditions, total = conditions(), sum(steps[part] for part in args.parts)
    parts, verdicts, done = dict[str, Part](), list[str](), itertools.count()
    with bar("startup", total) as show, tempfile.TemporaryDirectory() as scratch:

        def step(description: str) -> None:
            show(next(done), description)

        if "console" in args.parts:
            parts["console"] = console(args.rounds, step)
        if "run" in args.parts:
            parts["run"] = first_steps(Path(scratch), step)
        if "depth" in args.parts:
            parts["depth"], verdicts = depths(targets, args.depths, args.compilations, step)
        show(total, "")
    rows = [cells for part in parts.values() for cells in part.rows]
    bars = [ratio for part in parts.values() for ratio in part.ratios]
    details = {name: part.details for name, part in parts.items()} | {"verdicts": verdicts}
    publish(Measured("startup", rows, bars, details, describe_hardware(), start_conditions), args.output)
    for sentence in verdicts:
        make_console().print(sentence, highlight=False)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("startup", __doc__)
    default_topology = "v5e-1" if importlib.util.find_spec("libtpu") else ""
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)"
    )
    options.add_argument(
        "--rounds", type=positive, default=7, help="processes of each console command (default: 7)"
    )
    options.add_argument(
        "--depths",
        nargs="+",
        type=positive,
        default=[2, 4, 8, 16, 32],
        help="numbers of layers (default: 2 4 8 16 32)",
    )
    options.add_argument(
        "--compilations",
        type=positive,
        default=3,
        help="compilations of each depth, of which the fastest counts (default: 3)",
    )
    options.add_argument(
        "--topology",
        metavar="NAME",
        default=default_topology,
        help="TPU slice to compile for in addition to the CPU, '' for none (default: v5e-1 if the TPU "
        "compiler is installed, else none)",
    )
    return options.parse_args(argv)


def _environment(**changes: str) -> dict[str, str]:
    overrides = {"JAX_PLATFORMS": "cpu"} | changes
    # without JAX_COMPILATION_CACHE_DIR, a run uses the cache of sdft_jax
    return {key: x for key, x in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"} | overrides


def imported(arguments: Sequence[str]) -> list[str]:
    """Return the modules that the Python interpreter imports with these arguments.

    Raises:
        SdftError: the process fails.
    """
    process = _run(["-X", "importtime", *arguments])
    return re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", process.stderr, re.M)


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        [sys.executable, *arguments], env=_environment(), capture_output=True, encoding="utf-8", check=False
    )
    if process.returncode:
        sys.stderr.write(process.stderr)
        raise SdftError(
            f"sdft bench startup: `python {' '.join(arguments)}` failed; its error output is above."
        )
    return process


def console(rounds: int, step: Callable[[str], None]) -> Part:
    """Measure the seconds of each command in new processes, in alternation.

    An uncounted process of each command, before these, reports the modules that it imports.
    """
    step("imported modules")
    modules = {name: imported(arguments) for name, arguments in COMMANDS.items()}
    with_jax = {name: "jax" in imports for name, imports in modules.items()}
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            step(name)
            start = time.perf_counter()
            _run(arguments)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    *commands, jax_alone, empty = COMMANDS
    rows = [
        row(f"{name} ({'with' if with_jax[name] else 'without'} jax)", median[name], peer, median[peer])
        for name in commands
        for peer in (jax_alone, empty)
    ]
    bars = [Bar(f"{jax_alone} / {commands[0]}", RATIO, median[jax_alone] / median[commands[0]])]
    return Part(rows, bars, {"seconds": seconds, "imports jax": with_jax})


def first_steps(scratch: Path, step: Callable[[str], None]) -> Part:
    """Measure the time to the first line of metrics: with an empty cache, with a warm one, and resumed."""
    file, cache = scratch / "run.yaml", scratch / "cache"
    file.write_text(json.dumps(RUN), encoding="utf-8")
    seconds = {}
    for name, output in {"empty cache": "first", "warm cache": "second", "resume": "second"}.items():
        step(f"first step, {name}")
        seconds[name] = first_line(file, scratch / output, cache)
    cold, *others = seconds
    names = {"warm cache": "first step, warm cache", "resume": "first step of a resume, warm cache"}
    rows = [row(names[x], seconds[x], f"first step, {cold}", seconds[cold]) for x in others]
    bars = [Bar(f"first step: cold / {x.split()[0]}", RATIO, seconds[cold] / seconds[x]) for x in others]
    return Part(rows, bars, seconds)


def first_line(file: Path, output: Path, cache: Path) -> float:
    """Return the seconds from the start of `sdft train` to its first new line of metrics.

    SIGTERM then stops the run, which can be resumed from the checkpoint that it saves.

    Raises:
        SdftError: the run fails, or exits without saving a checkpoint after SIGTERM.
    """
    metrics, log = output / METRICS, file.with_suffix(".log")
    last_step = max((line["step"] for line in _lines(metrics)), default=0)
    command = [sys.executable, "-m", "sdft_jax.cli", "train", str(file), f"output={output}"]
    with log.open("w", encoding="utf-8") as log_file:
        start = time.perf_counter()
        run = subprocess.Popen(
            command, env=_environment(XDG_CACHE_HOME=str(cache)), stdout=log_file, stderr=subprocess.STDOUT
        )
        try:
            while run.poll() is None and not any(x["step"] > last_step for x in _lines(metrics)):
                time.sleep(0.01)
            seconds = time.perf_counter() - start
        finally:
            run.send_signal(signal.SIGTERM)
            code = run.wait()
    if code != STOPPED:
        sys.stderr.write(log.read_text(encoding="utf-8"))
        raise SdftError(f"sdft bench startup: `sdft train` exited with code {code}; its log is above.")
    return seconds


def _lines(metrics: Path) -> list[dict[str, Any]]:
    return read_jsonl(metrics) if metrics.is_file() else []
