"""Seconds until something happens: the console command, the first step of a run, a resume, a compilation.

`console`: `sdft --help` and `import sdft_jax` as fresh processes, in turns with `import jax` and with an
interpreter that does nothing. `run`: from the start of `sdft train` on the mini model to its first line of
metrics, without and with a warm compilation cache, and a resume of it. `depth`: compiling the whole update
of a small model of 2 to 32 layers, for a TPU ahead of time where its compiler is installed, and for a CPU,
where layers may be unrolled while decoding. Everything runs on the CPU.
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
from rich.console import Console

from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.sinks import METRICS, read_jsonl
from sdft_jax.studies.bench.depth import depths, devices_of
from sdft_jax.studies.bench.results import RATIO, Measured, Part, conditions, parser, positive, publish, row

PARTS = ("console", "run", "depth")
COMMANDS: Mapping[str, Sequence[str]] = {
    "sdft --help": ("-m", "sdft_jax.cli", "--help"),
    "import sdft_jax": ("-c", "import sdft_jax"),
    "import jax": ("-c", "import jax"),
    "an empty program": ("-c", "pass"),
}
"""Arguments of the interpreter; the last two are what the others stand beside."""
RUN = {
    "model": {"path": "mini", "compute_dtype": "float32", "remat": "none"},
    "data": {"path": "mini:blax", "max_prompt": 64, "max_teacher_prompt": 96},
    "sampling": {"max_new_tokens": 16},
    "train": {"steps": 1000, "batch_size": 8, "save_every": 0, "rollouts_every": 0, "phases_every": 0},
    "mesh": {"fsdp": 1},
}
"""A run as quickstart.yaml's, with smaller steps; it is stopped after the first."""
STOPPED = 143
"""Exit code of a run that has saved itself on SIGTERM."""


def main(words: Sequence[str]) -> None:
    """Measure the parts of the command line.

    Raises:
        SdftError: a process fails, or there is no compiler for `--topology`.
    """
    a = _arguments(words)
    jax.config.update("jax_platforms", "cpu")
    targets = devices_of(a.topology) if "depth" in a.parts else {}
    amounts = {
        "console": a.rounds * len(COMMANDS) + 1,
        "run": 3,
        "depth": len(targets) * (a.compilations * len(a.depths) + 1),
    }
    began, total = conditions(), sum(amounts[part] for part in a.parts)
    parts, verdicts, done = dict[str, Part](), list[str](), itertools.count()
    with bar("startup", total) as show, tempfile.TemporaryDirectory() as scratch:

        def step(what: str) -> None:
            show(next(done), what)

        if "console" in a.parts:
            parts["console"] = console(a.rounds, step)
        if "run" in a.parts:
            parts["run"] = first_steps(Path(scratch), step)
        if "depth" in a.parts:
            parts["depth"], verdicts = depths(targets, a.depths, a.compilations, step)
        show(total, "")
    rows = [cells for part in parts.values() for cells in part.rows]
    bars = [one for part in parts.values() for one in part.ratios]
    details = {name: part.details for name, part in parts.items()} | {"verdicts": verdicts}
    publish(Measured("startup", rows, bars, details, describe_hardware(), began), a.output)
    for sentence in verdicts:
        Console().print(sentence, highlight=False)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("startup", __doc__)
    here = "v5e-1" if importlib.util.find_spec("libtpu") else ""
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    made.add_argument("--rounds", type=positive, default=7, help="processes of each console command (7)")
    made.add_argument(
        "--depths", nargs="+", type=positive, default=[2, 4, 8, 16, 32], help="layers (2 4 8 16 32)"
    )
    made.add_argument("--compilations", type=positive, default=3, help="of each depth; least counts (3)")
    made.add_argument(
        "--topology",
        metavar="NAME",
        default=here,
        help="TPU slice to compile for besides the CPU, '' for none (v5e-1 where the TPU "
        "compiler is installed, else none)",
    )
    return made.parse_args(words)


def _environment(**changes: str) -> dict[str, str]:
    chosen = {"JAX_PLATFORMS": "cpu"} | changes  # and the library's own cache, no other
    return {key: x for key, x in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"} | chosen


def imported(arguments: Sequence[str]) -> list[str]:
    """Modules that an interpreter with these arguments imports; SdftError where it fails."""
    told = _finished(["-X", "importtime", *arguments])
    return re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", told.stderr, re.M)


def _finished(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments], env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SdftError(f"sdft bench startup: `python {' '.join(arguments)}` failed, and says above why.")
    return done


def console(rounds: int, step: Callable[[str], None]) -> Part:
    """Each command as a fresh process, in turns; before that, uncounted, what each imports."""
    step("modules that are imported")
    modules = {name: imported(arguments) for name, arguments in COMMANDS.items()}
    with_jax = {name: "jax" in found for name, found in modules.items()}
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            step(name)
            begun = time.perf_counter()
            _finished(arguments)
            seconds[name].append(time.perf_counter() - begun)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    *ours, jax_alone, nothing = COMMANDS
    rows = [
        row(f"{name} ({'with' if with_jax[name] else 'without'} jax)", middle[name], peer, middle[peer])
        for name in ours
        for peer in (jax_alone, nothing)
    ]
    bars = [Bar(f"{jax_alone} / {ours[0]}", RATIO, middle[jax_alone] / middle[ours[0]])]
    return Part(rows, bars, {"seconds": seconds, "imports jax": with_jax})


def first_steps(scratch: Path, step: Callable[[str], None]) -> Part:
    """From the start of a run to its first line of metrics: nothing compiled before, again, and resumed."""
    file, cache = scratch / "run.yaml", scratch / "cache"
    file.write_text(json.dumps(RUN), encoding="utf-8")
    seconds = {}
    for what, output in {"empty cache": "first", "warm cache": "second", "resume": "second"}.items():
        step(f"first step, {what}")
        seconds[what] = first_line(file, scratch / output, cache)
    cold, *others = seconds
    names = {"warm cache": "first step, warm cache", "resume": "first step of a resume, warm cache"}
    rows = [row(names[x], seconds[x], f"first step, {cold}", seconds[cold]) for x in others]
    bars = [Bar(f"first step: cold / {x.split()[0]}", RATIO, seconds[cold] / seconds[x]) for x in others]
    return Part(rows, bars, seconds)


def first_line(file: Path, output: Path, cache: Path) -> float:
    """Seconds from the start of `sdft train` to the first line of metrics that was not there before.

    The run is then stopped by SIGTERM, so that it can be resumed.

    Raises:
        SdftError: the run fails, or does not save itself when it is stopped.
    """
    metrics, log = output / METRICS, file.with_suffix(".log")
    before = max((line["step"] for line in _lines(metrics)), default=0)
    words = [sys.executable, "-m", "sdft_jax.cli", "train", str(file), f"output={output}"]
    with log.open("w", encoding="utf-8") as told:
        begun = time.perf_counter()
        run = subprocess.Popen(
            words, env=_environment(XDG_CACHE_HOME=str(cache)), stdout=told, stderr=subprocess.STDOUT
        )
        try:
            while run.poll() is None and not any(x["step"] > before for x in _lines(metrics)):
                time.sleep(0.01)
            seconds = time.perf_counter() - begun
        finally:
            run.send_signal(signal.SIGTERM)
            code = run.wait()
    if code != STOPPED:
        sys.stderr.write(log.read_text(encoding="utf-8"))
        raise SdftError(f"sdft bench startup: `sdft train` ended with code {code}, and says above why.")
    return seconds


def _lines(metrics: Path) -> list[dict[str, Any]]:
    return read_jsonl(metrics) if metrics.is_file() else []
