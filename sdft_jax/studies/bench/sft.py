"""A whole step of SDFT, compared with a step of SFT: how much of the difference in time the FLOPs explain.

Both methods use the same numbers of examples, prompt tokens and completion tokens; the teacher's prompt also
contains the demonstration. FLOPs are those of the matrix products in the compiled programs. The difference
between the ratio of seconds and the ratio of FLOPs is the cost of decoding token by token, and of everything
that is not a matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sdft_jax.config import Config, load_config
from sdft_jax.models import REMAT_POLICIES
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.studies.bench.models import SIZES, architecture
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish, shape
from sdft_jax.studies.bench.timing import ratios, turns
from sdft_jax.studies.lab.cost import Prepared, prepare_step

METHODS = ("sft", "sdft")


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload for both methods."""

    size: str
    rows: int
    prompt: int
    teacher: int
    new: int

    def __str__(self) -> str:
        return f"{self.size}, {self.rows} x ({self.prompt}, {self.teacher} + {self.new})"


def main(argv: Sequence[str]) -> None:
    """Run the cases that the command line selects."""
    args = _parse_arguments(argv)
    start_conditions = conditions()
    cases = [Case(size, *shape) for size in args.models for shape in args.shapes]

    def measure_case(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        model = architecture(case.size)
        prepared = {
            method: prepare_step(_config(case, method, args), model, case.prompt, case.teacher)
            for method in METHODS
        }
        flops = {method: each.flops for method, each in prepared.items()}
        seconds = turns({method: _stepper(each) for method, each in prepared.items()}, args.rounds)
        details = dataclasses.asdict(case) | {"flops": flops, "seconds": seconds}
        return *compare(case, flops, seconds), details

    rows, bars, details = each_case("sft", cases, measure_case)
    machine = f"remat {args.remat}; {describe_hardware()}"
    publish(Measured("sft", rows, bars, details, machine, start_conditions), args.output)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("sft", __doc__)
    options.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["1M", "4M"],
        help="random models, named by their number of parameters (default: 1M 4M)",
    )
    options.add_argument(
        "--shapes",
        nargs="+",
        type=functools.partial(shape, count=4),
        metavar="BxPxQxN",
        default=[(32, 64, 128, 64), (8, 256, 512, 256)],
        help="rows, tokens of the student's prompt, of the teacher's prompt and of the completion "
        "(default: 32x64x128x64 8x256x512x256)",
    )
    options.add_argument(
        "--remat",
        choices=list(REMAT_POLICIES),
        default="hidden",
        help="rematerialization policy of the backward pass (default: hidden)",
    )
    options.add_argument(
        "--rounds",
        type=positive,
        default=5,
        help="measured rounds, in which the methods alternate (default: 5)",
    )
    options.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="options for both, such as model.compute_dtype=bfloat16",
    )
    return options.parse_args(argv)


def _config(case: Case, method: str, args: argparse.Namespace) -> Config:
    keys = {
        "train.method": method,
        "train.batch_size": case.rows,
        "sampling.max_new_tokens": case.new,
        "model.remat": args.remat,
    }
    return load_config(None, [*(f"{key}={value}" for key, value in keys.items()), *args.overrides])


def _stepper(prepared: Prepared) -> Callable[[], None]:
    """Return a function that runs one step per call, each starting from the state after the previous step."""
    state = [prepared.state]

    def step() -> None:
        state[0], _ = jax.block_until_ready(prepared.compiled(state[0], prepared.batch))

    return step


def compare(
    case: Case, flops: Mapping[str, float], seconds: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratio, FLOPs ratio over seconds ratio.

    A ratio of 1 means that FLOPs explain all of the difference in time.
    """
    median = {method: sorted(each)[len(each) // 2] for method, each in seconds.items()}
    flops_ratio = flops["sdft"] / flops["sft"]
    slowdown, slowdown_text = ratios(seconds["sft"], seconds["sdft"])
    row = {
        "model": case.size,
        "rows": case.rows,
        "tokens": f"{case.prompt}, {case.teacher} + {case.new}",
        "SFT": f"{median['sft']:.3g} s",
        "SDFT": f"{median['sdft']:.3g} s",
        "times the seconds": slowdown_text,
        "times the FLOPs": f"{flops_ratio:.2f}",
        "seconds over FLOPs": f"{slowdown / flops_ratio:.2f}",
    }
    return row, [Bar(str(case), "FLOPs ratio over seconds ratio", flops_ratio / slowdown)]
