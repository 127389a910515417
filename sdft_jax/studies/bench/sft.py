"""A whole step of SDFT beside one of SFT: how much of the difference the FLOPs explain.

Equal examples, prompts and completions; the teacher's prompt is longer by the demonstration. FLOPs are those
of the matrix products in both programs. What remains between the ratio of seconds and that of FLOPs is the
price of decoding token by token, and of everything that is not a matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sdft_jax.config import Config, load_config
from sdft_jax.models import REMAT_POLICIES
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.studies.bench.models import SIZES, architecture
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, publish
from sdft_jax.studies.bench.timing import ratios, turns
from sdft_jax.studies.lab.cost import Prepared, prepare_step

METHODS = ("sft", "sdft")


@dataclasses.dataclass(frozen=True)
class Case:
    """What both methods are given."""

    size: str
    rows: int
    prompt: int
    teacher: int
    new: int

    def __str__(self) -> str:
        return f"{self.size}, {self.rows} x ({self.prompt}, {self.teacher} + {self.new})"


def main(words: Sequence[str]) -> None:
    """Run the cases of the command line."""
    a = _arguments(words)
    began = conditions()
    cases = [Case(size, *shape) for size in a.models for shape in a.shapes]

    def measured(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        model = architecture(case.size)
        prepared = {
            method: prepare_step(_config(case, method, a), model, case.prompt, case.teacher)
            for method in METHODS
        }
        flops = {method: each.flops for method, each in prepared.items()}
        seconds = turns({method: _stepper(each) for method, each in prepared.items()}, a.rounds)
        details = dataclasses.asdict(case) | {"flops": flops, "seconds": seconds}
        return *compare(case, flops, seconds), details

    rows, bars, details = each_case("sft", cases, measured)
    publish(Measured("sft", rows, bars, details, f"remat {a.remat}; {describe_hardware()}", began), a.output)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("sft", __doc__)
    made.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["1M", "4M"],
        help="random models by their parameters (1M 4M)",
    )
    made.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="BxPxQxN",
        default=[(32, 64, 128, 64), (8, 256, 512, 256)],
        help="rows, tokens of the student's prompt, of the teacher's, of a completion "
        "(32x64x128x64 8x256x512x256)",
    )
    made.add_argument(
        "--remat",
        choices=list(REMAT_POLICIES),
        default="hidden",
        help="what the backward pass computes again (hidden)",
    )
    made.add_argument("--rounds", type=int, default=5, help="counted steps of each method, in turns (5)")
    made.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="options of both, such as model.compute_dtype=bfloat16",
    )
    return made.parse_args(words)


def _shape(text: str) -> tuple[int, int, int, int]:
    rows, prompt, teacher, new = map(int, text.split("x"))  # argparse tells of a ValueError
    return rows, prompt, teacher, new


def _config(case: Case, method: str, a: argparse.Namespace) -> Config:
    keys = {
        "train.method": method,
        "train.batch_size": case.rows,
        "sampling.max_new_tokens": case.new,
        "model.remat": a.remat,
    }
    return load_config(None, [*(f"{key}={value}" for key, value in keys.items()), *a.overrides])


def _stepper(prepared: Prepared) -> Callable[[], None]:
    """One step at every call, from where the last one ended."""
    state = [prepared.state]

    def step() -> None:
        state[0], _ = jax.block_until_ready(prepared.compiled(state[0], prepared.batch))

    return step


def compare(
    case: Case, flops: Mapping[str, float], seconds: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Any], list[Bar]]:
    """A row of the table and its ratio: FLOPs' over seconds', 1 where the FLOPs explain all."""
    middle = {method: sorted(each)[len(each) // 2] for method, each in seconds.items()}
    more, longer = flops["sdft"] / flops["sft"], ratios(seconds["sft"], seconds["sdft"])
    row = {
        "model": case.size,
        "rows": case.rows,
        "tokens": f"{case.prompt}, {case.teacher} + {case.new}",
        "SFT": f"{middle['sft']:.3g} s",
        "SDFT": f"{middle['sdft']:.3g} s",
        "times the seconds": longer[1],
        "times the FLOPs": f"{more:.2f}",
        "seconds over FLOPs": f"{longer[0] / more:.2f}",
    }
    return row, [Bar(str(case), "FLOPs ratio over seconds ratio", more / longer[0])]
