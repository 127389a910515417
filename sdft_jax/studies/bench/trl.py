"""A whole training step against TRL's SDFTTrainer: seconds, and memory at its peak.

Both train the same checkpoint on the same rows by the same method: one rollout a prompt by the library's own
sampler, reverse KL over the whole vocabulary, AdamW, an EMA teacher after every step; in float32 on a CPU, in
bfloat16 on a GPU (weights, moments and teacher too). Every run is a process of its own, so that its peak is
its own, and the two sides take turns, so that a machine that drifts drifts for both.
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

from rich.console import Console

from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.progress import bar
from sdft_jax.studies.bench.models import SIZES
from sdft_jax.studies.bench.results import Measured, conditions, parser, publish

WARM_UP = 2
"""First steps that are not counted: they compile, and fill caches."""
TOLERANCE = 1e-4
"""Of loss and gradient, relative, in float32."""
SIDES = ("ours", "trl")
Run = Mapping[str, Any]
"""What a process wrote: see trl_sides.py."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides are given."""

    size: str
    batch: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.size}, {self.batch} x ({self.prompt} + {self.new})"


def main(words: Sequence[str]) -> None:
    """Run the cases of the command line.

    Raises:
        SdftError: TRL is missing, a side fails, or the sides ran on different kinds of device.
    """
    a = _arguments(words)
    missing = [name for name in ("torch", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        raise SdftError(f"sdft bench trl needs {' and '.join(missing)}: pip install 'sdft_jax[bench]'.")
    cases = [Case(size, *shape) for size in a.models for shape in a.shapes]
    began, measured = conditions(), []
    apart = cross_check(a.dtype)
    console = Console()
    console.print(
        f"same weights and completions: loss {apart['loss']:.1e} and gradient {apart['gradient']:.1e} apart "
        "(relative)",
        highlight=False,
    )
    with tempfile.TemporaryDirectory() as scratch, bar("trl", 2 * a.rounds * len(cases)) as show:
        for number, case in enumerate(cases):
            show_side = functools.partial(_show, show, 2 * a.rounds * number, case)
            runs = measure(case, Path(scratch) / str(number), a.rounds, a.steps, a.dtype, show_side)
            measured.append((case, runs))
        show(2 * a.rounds * len(cases), "")
    compared = [compare(case, runs) for case, runs in measured]
    machine = "; ".join(measured[0][1][side][0]["machine"] for side in SIDES)
    each = [dataclasses.asdict(case) | {"runs": runs} for case, runs in measured]
    details = {"apart": apart, "cases": each}
    rows, ratios = [row for row, _ in compared], [each for _, bars in compared for each in bars]
    publish(Measured("trl", rows, ratios, details, machine, began), a.output)


def cross_check(dtype: str) -> Run:
    """Relative differences of loss and gradient: trl_check.py.

    Raises:
        SdftError: one is larger than `TOLERANCE`, so that the two train differently.
    """
    case = Case("0.2M", 4, 40, 8)
    with tempfile.TemporaryDirectory() as scratch:
        settings = _settings(case, Path(scratch), 1, dtype)
        _process("prepare", settings, Path(scratch) / "prepare")
        apart = _process("check", settings, Path(scratch) / "check")
    if max(apart.values()) > TOLERANCE:
        raise SdftError(
            f"sdft bench trl: from the same weights and completions, loss and gradient are {apart} "
            f"apart, more than {TOLERANCE}: this TRL computes something else; pip install 'trl==1.16.*'."
        )
    return apart


def _settings(case: Case, directory: Path, steps: int, dtype: str) -> dict[str, Any]:
    return dataclasses.asdict(case) | {
        "model": str(directory / "model"),
        "rows": str(directory / "rows.jsonl"),
        "steps": steps,
        "dtype": dtype,
    }


def _show(show: Callable[[int, str], None], before: int, case: Case, done: int, side: str) -> None:
    show(before + done, f"{case}: {side}")


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("trl", __doc__)
    made.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["0.2M", "1M", "4M"],
        help="random Qwen3 models by their parameters (0.2M 1M 4M)",
    )
    made.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="BxPxN",
        default=[(8, 64, 64), (32, 64, 64), (8, 256, 128)],
        help="prompts a step, tokens of a prompt, tokens of a completion (8x64x64 32x64x64 8x256x128)",
    )
    made.add_argument("--steps", type=int, default=6, help="counted steps of a process (6)")
    made.add_argument("--rounds", type=int, default=2, help="processes of each side, in turns (2)")
    made.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="auto: float32 on a CPU, bfloat16 on a GPU",
    )
    return made.parse_args(words)


def _shape(text: str) -> tuple[int, int, int]:
    batch, prompt, new = map(int, text.split("x"))  # argparse turns a ValueError into its own message
    return batch, prompt, new


def measure(
    case: Case, directory: Path, rounds: int, steps: int, dtype: str, show: Callable[[int, str], None]
) -> dict[str, list[Run]]:
    """What each side's processes wrote, in turns."""
    directory.mkdir(parents=True)
    settings = _settings(case, directory, steps + WARM_UP, dtype)
    show(0, "model")
    _process("prepare", settings, directory / "prepare")
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for place, side in enumerate(SIDES):
            show(2 * turn + place, side)
            runs[side].append(_process(side, settings, directory / f"{side}{turn}"))
    return runs


def _process(side: str, settings: Mapping[str, Any], directory: Path) -> Run:
    directory.mkdir()
    file, result = directory / "settings.json", directory / "result.json"
    places = {"output": str(directory / "run"), "result": str(result)}
    file.write_text(json.dumps({**settings, **places}), encoding="utf-8")
    environment = {"CUDA_VISIBLE_DEVICES": "0", "TRL_EXPERIMENTAL_SILENCE": "1"} | os.environ
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # each compiles, as a first run does
    if side == "prepare":
        environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-m", "sdft_jax.studies.bench.trl_sides", side, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SdftError(f"sdft bench trl: the process `{side}` failed, and says above why.")
    return json.loads(result.read_text(encoding="utf-8"))


def compare(case: Case, runs: Mapping[str, Sequence[Run]]) -> tuple[dict[str, Any], list[Bar]]:
    """A row of the table and the ratios: medians of the counted steps, largest memory, TRL's over ours.

    Raises:
        SdftError: the sides ran on different kinds of device.
    """
    kinds = [{(run["dtype"], run["device_peak"] is None) for run in runs[side]} for side in SIDES]
    if kinds[0] != kinds[1]:
        raise SdftError(
            "sdft bench trl: one side ran on a GPU and the other did not: install both jax and torch for it, "
            "or set CUDA_VISIBLE_DEVICES= and JAX_PLATFORMS=cpu for neither."
        )
    seconds = {side: [statistics.median(run["seconds"][WARM_UP:]) for run in runs[side]] for side in SIDES}
    memory = {
        side: max(run["peak"] if run["device_peak"] is None else run["device_peak"] for run in runs[side])
        / 2**20
        for side in SIDES
    }
    faster = [b / a for a, b in zip(*seconds.values(), strict=True)]
    ours, trl = (statistics.median(seconds[side]) for side in SIDES)
    smaller = memory["trl"] / memory["ours"]
    first = {side: statistics.median(run["seconds"][0] for run in runs[side]) for side in SIDES}
    row = {
        "model": case.size,
        "prompts": case.batch,
        "tokens": f"{case.prompt} + {case.new}",
        "sdft_jax": f"{ours:.3g} s",
        "TRL": f"{trl:.3g} s",
        "times faster": f"{statistics.median(faster):.1f} ({min(faster):.1f}-{max(faster):.1f})",
        "sdft_jax, peak": f"{memory['ours']:.0f} MiB",
        "TRL, peak": f"{memory['trl']:.0f} MiB",
        "times less": f"{smaller:.2f}",
        "first step": f"{first['ours']:.1f} s",
        "TRL's first": f"{first['trl']:.1f} s",
    }
    return row, [
        Bar(str(case), "seconds a step", statistics.median(faster)),
        Bar(str(case), "peak memory", smaller),
    ]
