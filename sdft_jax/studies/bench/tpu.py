"""Peak memory per chip and seconds per step of the whole update, estimated by the TPU compiler without a TPU.

The numbers are those that `sdft plan` prints for the same settings: the compiler's own estimate, which
excludes time spent waiting for other chips, and the seconds that the chip's peak rates allow. Use --against
to detect regressions from an earlier --output. Each row takes minutes to compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sdft_jax.config import Config, load_config
from sdft_jax.errors import SdftError
from sdft_jax.files import read_json
from sdft_jax.plan.candidates import make_candidates
from sdft_jax.plan.estimate import Estimate
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.planner import plan
from sdft_jax.plan.show import compiler
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.stream import make_console
from sdft_jax.reporting.tables import summary_table
from sdft_jax.studies.bench.results import Measured, conditions, parser, publish

SLACK = 0.05
"""The maximum relative increase in memory or time that is not reported as a regression."""
LARGE = ("divergence.chunk=512", "sharding.sequence=tensor", "optimizer.learning_rate=2e-5")
"""Settings from configs/qwen2.5-7b-tooluse.yaml."""


@dataclasses.dataclass(frozen=True)
class Row:
    """An update and the TPU slice that it is compiled for."""

    model: str
    prompt: int
    """The maximum number of tokens in the student's prompt."""
    teacher: int
    """The maximum number of tokens in the teacher's prompt."""
    new: int
    """The maximum number of tokens in a completion."""
    batch: int
    slice: str
    mesh: str
    settings: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        """The configuration of the training run."""
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


def main(argv: Sequence[str]) -> int:
    """Compile the rows that the command line selects, and return 1 if one regressed from `--against`, else 0.

    Raises:
        SdftError: the TPU compiler is not installed, or `--against` is not an earlier result for these rows.
    """
    args = _parse_arguments(argv)
    before = read(args.against, args.rows) if args.against else None
    jax.config.update("jax_platforms", "cpu")  # nothing runs, so an installed TPU stays free
    start_conditions, estimates = conditions(), {}
    with bar("tpu", len(args.rows)) as show:
        for done, name in enumerate(args.rows):
            show(done, name)
            estimates[name] = compiled(ROWS[name])
        show(len(args.rows), "")
    details = {name: record(estimate) for name, estimate in estimates.items()}
    rows = [_cells(name, ROWS[name], estimate) for name, estimate in estimates.items()]
    ratios = [
        Bar(name, "seconds, peak rates", detail["limit_seconds"] / detail["seconds"])
        for name, detail in details.items()
        if detail["seconds"]
    ]
    machine = f"compiled by {compiler()} for TPUs"
    publish(Measured("tpu", rows, ratios, details, machine, start_conditions), args.output)
    if before is None:
        return 0
    changes, worse = compare(before, details)
    console = make_console()
    console.print(summary_table(changes, f"compared with {args.against}"))
    if worse:
        console.print(f"more than {SLACK:.0%} worse: {', '.join(worse)}", highlight=False, soft_wrap=True)
    return int(bool(worse))


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("tpu", __doc__)
    options.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        default=list(ROWS),
        metavar="NAME",
        help=f"rows to compile: {', '.join(ROWS)} (default: all)",
    )
    options.add_argument(
        "--against",
        metavar="FILE",
        help="tpu.json of an earlier --output: print how much each row changed, and exit with "
        f"code 1 if memory or time of a row grew by more than {SLACK * 100:.0f} %%",
    )
    return options.parse_args(argv)


def compiled(row: Row) -> Estimate:
    """Return the estimate of `sdft plan --fast` for the row.

    Raises:
        SdftError: the TPU compiler is not installed.
    """
    candidates = make_candidates(row.config, [row.slice], row.mesh, ())
    (estimate,), _ = plan(row.config, candidates, largest=False, show=lambda *_: None)
    return estimate


def record(estimate: Estimate) -> dict[str, Any]:
    """Return the JSON record of an estimate, in bytes per device and seconds per step (None if refused)."""
    return {
        "peak_bytes": estimate.peak,
        "seconds": None if estimate.refusal else estimate.total_seconds,
        "limit_seconds": sum(estimate.roofline.values()),
        "refusal": estimate.refusal,
        "seconds by phase": dict(estimate.seconds),
        "temporary bytes by phase": dict(estimate.temporaries),
        "compile_seconds": estimate.compile_seconds,
        "compiler": compiler(),
    }


def _cells(name: str, row: Row, estimate: Estimate) -> dict[str, Any]:
    limit = sum(estimate.roofline.values())
    cells = {
        "row": name,
        "model": row.model,
        "tokens": f"{row.prompt:,}, {row.teacher:,}, {row.new:,}",
        "batch": row.batch,
        "slice": row.slice,
        "mesh": row.mesh.replace(",", ", "),
        "peak": f"{estimate.peak / GIB:.2f} GiB",
    }
    if estimate.refusal:
        return cells | {"estimated seconds": estimate.refusal}
    return cells | {
        "estimated seconds": f"{estimate.total_seconds:.2f}",
        "at peak rates": f"{limit:.2f}",
        "peak rates / estimate": f"{limit / estimate.total_seconds:.2f}",
    }


def read(file: str, rows: Sequence[str]) -> Mapping[str, Any]:
    """Read an earlier tpu.json, and return row -> record.

    Raises:
        SdftError: the file cannot be read, is not a tpu.json, or contains none of `rows`.
    """
    try:
        details = read_json(file, "pass the tpu.json of an earlier run as --against").get("details")
        records = {name: x for name, x in details.items() if _is_record(x)}
    except AttributeError:
        raise SdftError(
            f"--against {file} is not a result of sdft bench tpu: pass the tpu.json of an earlier run."
        ) from None
    if not set(rows) & set(records):
        raise SdftError(
            f"--against {file} contains none of the rows to compare ({', '.join(rows)}): pass one that does."
        )
    return records


def _is_record(value: Any) -> bool:
    numbers = [value.get(name) for name in ("peak_bytes", "seconds")] if isinstance(value, dict) else [None]
    return all(type(number) in (int, float) for number in numbers)


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """Return a table line for each row of `now`, and the names of the rows that grew by more than `SLACK`."""
    lines, worse = [], []
    for name, new in now.items():
        old = before.get(name)
        if old is None:
            lines.append({"row": name, "peak": "not in the earlier result"})
            continue
        line = {
            "row": name,
            "peak": _change(old["peak_bytes"] / GIB, new["peak_bytes"] / GIB, "GiB"),
            "estimated": _change(old["seconds"], new["seconds"], "s"),
        }
        if old["compiler"] != new["compiler"]:  # the compiler may be the cause of a change
            line["earlier compiler"] = old["compiler"]
        lines.append(line)
        if any(_growth(old[key], new[key]) > SLACK for key in ("peak_bytes", "seconds")):
            worse.append(name)
    return lines, worse


def _growth(old: float | None, new: float | None) -> float:
    """Return the relative increase; a refused program has no seconds and counts as an infinite increase."""
    if old is None:
        return 0.0
    return math.inf if new is None else new / old - 1


def _change(old: float | None, new: float | None, unit: str) -> str:
    values = " -> ".join("refused" if x is None else f"{x:.2f} {unit}" for x in (old, new))
    return f"{values} ({_growth(old, new):+.1%})"
