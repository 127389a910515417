"""FLOP/s of the teacher's forward pass and the student's forward and backward passes.

Model FLOPs are counted in a program without rematerialization; seconds are those of the real program.
Utilization is relative to a large matrix product measured in the same run, and to the vendor's peak if it is
known. The optimizer and the rollout are not included: see `sdft bench trl` and `sdft bench decode`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdft_jax.algorithm.update import LossOptions, Rows, distillation_loss
from sdft_jax.config.settings import DivergenceConfig, ObjectiveConfig
from sdft_jax.models import REMAT_POLICIES, Model
from sdft_jax.plan.hlo import matmul_flops
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.studies.bench.models import SIZES, architecture
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish, shape
from sdft_jax.studies.bench.timing import turns
from sdft_jax.types import Params, Rollout, Sequences, TokenBatch

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "v5 lite": 197e12, "v5p": 459e12, "v6 lite": 918e12}
"""Substring of the device name -> peak FLOP/s of dense bfloat16 products (NVIDIA and Google data sheets)."""
WIDTHS = {"cpu": 4096}
"""Platform -> width of the matrices of the large product, 8192 on others."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload."""

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
    dtype = (
        ("float32" if jax.default_backend() == "cpu" else "bfloat16") if args.dtype == "auto" else args.dtype
    )
    cases = [Case(size, *shape) for size in args.models for shape in args.shapes]

    def measure_case(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        measurements = measure(case, dtype, args.remat, args.rounds)
        return *compare(case, measurements), dataclasses.asdict(case) | measurements

    rows, bars, details = each_case("train", cases, measure_case)
    machine = f"remat {args.remat}, {dtype}; {describe_hardware()}"
    publish(Measured("train", rows, bars, details, machine, start_conditions), args.output)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("train", __doc__)
    options.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["1M", "4M", "32M"],
        help="random models, named by their number of parameters (default: 1M 4M 32M)",
    )
    options.add_argument(
        "--shapes",
        nargs="+",
        type=functools.partial(shape, count=4),
        metavar="BxPxQxN",
        default=[(8, 128, 256, 128)],
        help="rows, tokens of the student's prompt, of the teacher's prompt and of the completion "
        "(default: 8x128x256x128)",
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
        help="measured rounds, in which the step and the product alternate (default: 5)",
    )
    options.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="dtype of weights and computation (default: auto, which is float32 on a CPU, else bfloat16)",
    )
    return options.parse_args(argv)


def measure(case: Case, dtype: str, remat: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of each round and the FLOPs, of the step and of the product."""
    model = Model(architecture(case.size), compute_dtype=dtype, remat=remat)
    rows, (student, teacher) = _rows(case, model.architecture.vocab_size), _params(model, dtype)
    step = jax.jit(functools.partial(learn, model))
    plain = dataclasses.replace(model, remat="none", attention="xla")
    program = jax.jit(functools.partial(learn, plain)).lower(student, teacher, rows)
    size = WIDTHS.get(jax.default_backend(), 8192)
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = turns(
        {
            "step": lambda: jax.block_until_ready(step(student, teacher, rows)),
            "product": lambda: jax.block_until_ready(product(square, square)),
        },
        rounds,
    )
    return {
        "seconds": seconds,
        "flops": matmul_flops(program.as_text(dialect="hlo", debug_info=True)),
        "flops of the product": 2.0 * size**3,
        "peak": next((peak for name, peak in PEAKS.items() if name in jax.devices()[0].device_kind), None),
    }


def learn(model: Model, student: Params, teacher: Params, rows: Rows) -> tuple[jax.Array, Params]:
    """Compute the loss and gradients of the reverse KL, as in `algorithm/update.py`."""
    options = LossOptions(DivergenceConfig(), ObjectiveConfig())

    def loss(params: Params) -> jax.Array:
        return distillation_loss(model, params, teacher, rows, options)[0]

    with model.numerics():
        return jax.value_and_grad(loss)(student)


def _params(model: Model, dtype: str) -> tuple[Params, Params]:
    init = jax.jit(lambda key: model.init(key, dtype))
    return init(jax.random.key(0)), init(jax.random.key(1))


def _rows(case: Case, vocabulary: int) -> Rows:
    rng, count = np.random.default_rng(0), case.rows

    def tokens(width: int) -> Sequences:
        ids = rng.integers(1, vocabulary, (count, width))
        return Sequences(jnp.asarray(ids, jnp.int32), jnp.ones((count, width), bool))

    batch = TokenBatch(
        tokens(case.prompt), tokens(case.teacher), tokens(0), jnp.arange(count), jnp.ones(count)
    )
    completion = tokens(case.new)
    shape = completion.tokens.shape
    rollout = Rollout(completion.tokens, completion.mask, jnp.zeros(shape))
    return Rows(batch, rollout, completion.mask, jnp.full(shape, 1 / completion.tokens.size))


def compare(case: Case, measurements: Mapping[str, Any]) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratio, FLOP/s of the step over FLOP/s of the product."""
    seconds = {side: statistics.median(each) for side, each in measurements["seconds"].items()}
    rate = measurements["flops"] / seconds["step"]
    product_rate = measurements["flops of the product"] / seconds["product"]
    row = {
        "model": case.size,
        "rows": case.rows,
        "tokens": f"{case.prompt}, {case.teacher} + {case.new}",
        "a step": f"{seconds['step']:.3g} s",
        "model TFLOP": f"{measurements['flops'] / 1e12:.3g}",
        "TFLOP/s": f"{rate / 1e12:.3g}",
        "a large product's": f"{product_rate / 1e12:.3g}",
        "of it": f"{100 * rate / product_rate:.0f} %",
    }
    if measurements["peak"]:
        row["of the maker's peak"] = f"{100 * rate / measurements['peak']:.0f} %"
    return row, [Bar(str(case), "FLOP/s, large product", rate / product_rate)]
