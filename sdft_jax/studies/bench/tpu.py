"""What the TPU compiler says of the whole update, without a TPU: peak memory of a chip and seconds of a step.

It is what `sdft plan` prints for the same settings: the compiler's own estimate, without waiting for other
chips, beside the seconds that the chip's peak rates allow. `--against` compares with an earlier --output, so
that a change that costs is seen. A row takes minutes to compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from sdft_jax.config import Config, load_config
from sdft_jax.errors import SdftError
from sdft_jax.plan.estimate import Estimate
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.planner import candidates, plan
from sdft_jax.plan.show import compiler
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.tables import summary_table
from sdft_jax.studies.bench.results import Measured, conditions, parser, publish

SLACK = 0.05
"""Share by which a row may get worse."""
LARGE = ("divergence.chunk=512", "sharding.sequence=tensor", "optimizer.learning_rate=2e-5")
"""What configs/qwen2.5-7b-tooluse.yaml has of its own."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One update and the slice that it is compiled for."""

    model: str
    prompt: int
    """Most tokens of the student's prompt."""
    teacher: int
    """Most tokens of the teacher's."""
    new: int
    """Most tokens of a completion."""
    batch: int
    slice: str
    mesh: str
    settings: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        """What is trained."""
        keys = {
            "model.path": self.model,
            "data.max_prompt": self.prompt,
            "data.max_teacher_prompt": self.teacher,
            "sampling.max_new_tokens": self.new,
            "train.batch_size": self.batch,
        }
        return load_config(None, [*(f"{key}={value}" for key, value in keys.items()), *self.settings])


ROWS: Mapping[str, Row] = {
    "7b-v5e-16": Row("Qwen2.5-7B", 512, 1024, 512, 32, "v5e-16", "fsdp=4,tensor=4", LARGE),
    "7b-v6e-16": Row("Qwen2.5-7B", 512, 1024, 512, 64, "v6e-16", "fsdp=4,tensor=4", LARGE),
    "7b-v5p-8": Row("Qwen2.5-7B", 512, 1024, 512, 32, "v5p-8", "tensor=4", LARGE),
    "0.5b-v5e-1": Row("Qwen2.5-0.5B", 512, 1024, 512, 16, "v5e-1", "fsdp=1"),
    "7b-long-v5e-16": Row("Qwen2.5-7B", 1536, 3072, 1024, 32, "v5e-16", "fsdp=4,tensor=4", LARGE),
}


def main(words: Sequence[str]) -> int:
    """Compile the rows of the command line; 1 where one got worse than in `--against`, else 0.

    Raises:
        SdftError: the TPU compiler is not installed, or `--against` is no earlier result of these rows.
    """
    a = _arguments(words)
    before = read(a.against, a.rows) if a.against else None
    jax.config.update("jax_platforms", "cpu")  # nothing runs: a TPU that is there stays free
    began, found = conditions(), {}
    with bar("tpu", len(a.rows)) as show:
        for done, name in enumerate(a.rows):
            show(done, name)
            found[name] = compiled(ROWS[name])
        show(len(a.rows), "")
    details = {name: record(one) for name, one in found.items()}
    rows = [_cells(name, ROWS[name], one) for name, one in found.items()]
    ratios = [
        Bar(name, "at peak rates / estimated", one["limit_seconds"] / one["seconds"])
        for name, one in details.items()
        if one["seconds"]
    ]
    publish(Measured("tpu", rows, ratios, details, f"compiled by {compiler()} for TPUs", began), a.output)
    if before is None:
        return 0
    changes, worse = compare(before, details)
    console = Console()
    console.print(summary_table(changes, f"against {a.against}"))
    if worse:
        console.print(f"more than {SLACK:.0%} worse: {', '.join(worse)}", highlight=False, soft_wrap=True)
    return int(bool(worse))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("tpu", __doc__)
    made.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        default=list(ROWS),
        metavar="NAME",
        help=f"some of {', '.join(ROWS)} (all)",
    )
    made.add_argument(
        "--against",
        metavar="FILE",
        help="tpu.json of an earlier --output: print by how much each row changed, exit with "
        f"code 1 if one is more than {SLACK * 100:.0f} %% worse",
    )
    return made.parse_args(words)


def compiled(row: Row) -> Estimate:
    """What `sdft plan --fast` has for the row; SdftError where the TPU compiler is not installed."""
    every = candidates(row.config, [row.slice], row.mesh, ())
    (one,), _ = plan(row.config, every, largest=False, show=lambda *_: None)
    return one


def record(one: Estimate) -> dict[str, Any]:
    """An estimate for the JSON file: bytes a device and seconds a step; no seconds where it was refused."""
    return {
        "peak_bytes": one.peak,
        "seconds": None if one.refusal else one.total_seconds,
        "limit_seconds": sum(one.roofline.values()),
        "refusal": one.refusal,
        "seconds by phase": dict(one.seconds),
        "bytes besides the state by phase": dict(one.temporaries),
        "compile_seconds": one.compile_seconds,
        "compiler": compiler(),
    }


def _cells(name: str, row: Row, one: Estimate) -> dict[str, Any]:
    limit = sum(one.roofline.values())
    cells = {
        "row": name,
        "model": row.model,
        "tokens": f"{row.prompt:,}, {row.teacher:,}, {row.new:,}",
        "batch": row.batch,
        "slice": row.slice,
        "mesh": row.mesh.replace(",", ", "),
        "peak": f"{one.peak / GIB:.2f} GiB",
    }
    if one.refusal:
        return cells | {"estimated seconds": one.refusal}
    return cells | {
        "estimated seconds": f"{one.total_seconds:.2f}",
        "at peak rates": f"{limit:.2f}",
        "peak rates / estimate": f"{limit / one.total_seconds:.2f}",
    }


def read(file: str, rows: Sequence[str]) -> Mapping[str, Any]:
    """Row -> record of an earlier tpu.json; SdftError where it is something else or has none of `rows`."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        known = {name: one for name, one in found["details"].items() if {"peak_bytes", "seconds"} <= set(one)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is something else"
        raise SdftError(f"--against {file} cannot be read ({reason}): give an earlier tpu.json.") from None
    if not set(rows) & set(known):
        raise SdftError(f"--against {file} has no row {', '.join(rows)}: give an earlier tpu.json that has.")
    return known


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """A line for each row of now, and the names of those that got more than `SLACK` worse."""
    lines, worse = [], []
    for name, new in now.items():
        old = before.get(name)
        if old is None:
            lines.append({"row": name, "peak": "not there before"})
            continue
        line = {
            "row": name,
            "peak": _change(old["peak_bytes"] / GIB, new["peak_bytes"] / GIB, "GiB"),
            "estimated": _change(old["seconds"], new["seconds"], "s"),
        }
        if old["compiler"] != new["compiler"]:  # then the change need not be ours
            line["then compiled by"] = old["compiler"]
        lines.append(line)
        if any(_growth(old[key], new[key]) > SLACK for key in ("peak_bytes", "seconds")):
            worse.append(name)
    return lines, worse


def _growth(old: float | None, new: float | None) -> float:
    """Share by which it grew. What is refused has no seconds, which is worse than any."""
    if old is None:
        return 0.0
    return math.inf if new is None else new / old - 1


def _change(old: float | None, new: float | None, unit: str) -> str:
    both = " -> ".join("refused" if x is None else f"{x:.2f} {unit}" for x in (old, new))
    return f"{both} ({_growth(old, new):+.1%})"
