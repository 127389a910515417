"""Learning alone (teacher forward, student forward and backward) beside the fastest matrix product.

The step's model FLOPs are counted in the program without rematerialisation; its seconds are those of the real
one. Utilisation is relative to a large matrix product measured in the same run, and to the maker's peak where
that is known. No optimizer and no rollout: `sdft bench trl` and `sdft bench decode` have those.
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

from sdft_jax.algorithm.update import Rows, distillation_loss
from sdft_jax.config import Config
from sdft_jax.models import REMAT_POLICIES, Model
from sdft_jax.plan.hlo import matmul_flops
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.studies.bench.models import SIZES, architecture
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, publish
from sdft_jax.studies.bench.timing import turns
from sdft_jax.types import Params, Rollout, TokenBatch

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "v5 lite": 197e12, "v5p": 459e12, "v6 lite": 918e12}
"""FLOP/s of dense bfloat16 products by a part of the device's name (data sheets of NVIDIA and Google)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is learned from."""

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
    dtype = ("float32" if jax.default_backend() == "cpu" else "bfloat16") if a.dtype == "auto" else a.dtype
    cases = [Case(size, *shape) for size in a.models for shape in a.shapes]

    def measured(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        found = measure(case, dtype, a.remat, a.rounds)
        return *compare(case, found), dataclasses.asdict(case) | found

    rows, bars, details = each_case("train", cases, measured)
    publish(
        Measured("train", rows, bars, details, f"remat {a.remat}, {dtype}; {describe_hardware()}", began),
        a.output,
    )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("train", __doc__)
    made.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["1M", "4M", "32M"],
        help="random models by their parameters (1M 4M 32M)",
    )
    made.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="BxPxQxN",
        default=[(8, 128, 256, 128)],
        help="rows, tokens of the student's prompt, of the teacher's, of a completion (8x128x256x128)",
    )
    made.add_argument(
        "--remat",
        choices=list(REMAT_POLICIES),
        default="hidden",
        help="what the backward pass computes again (hidden)",
    )
    made.add_argument("--rounds", type=int, default=5, help="counted calls of each side, in turns (5)")
    made.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of weights and computing; auto: float32 on a CPU, else bfloat16",
    )
    return made.parse_args(words)


def _shape(text: str) -> tuple[int, int, int, int]:
    rows, prompt, teacher, new = map(int, text.split("x"))  # argparse tells of a ValueError
    return rows, prompt, teacher, new


def measure(case: Case, dtype: str, remat: str, rounds: int) -> dict[str, Any]:
    """Seconds a round of the step and of the product, and FLOPs of both."""
    model = Model(architecture(case.size), compute_dtype=dtype, remat=remat)
    rows, (student, teacher) = _rows(case, model.config.vocab_size), _params(model, dtype)
    step = jax.jit(functools.partial(learn, model))
    plain = dataclasses.replace(model, remat="none", attention="xla")
    program = jax.jit(functools.partial(learn, plain)).lower(student, teacher, rows)
    size = 4096 if jax.default_backend() == "cpu" else 8192
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
    """Loss and gradients of the reverse KL, as in `update.py`."""
    config = Config()

    def loss(params: Params) -> jax.Array:
        return distillation_loss(model, params, teacher, rows, config)[0]

    with model.matmul_precision():
        return jax.value_and_grad(loss)(student)


def _params(model: Model, dtype: str) -> tuple[Params, Params]:
    init = jax.jit(lambda key: model.init(key, dtype))
    return init(jax.random.key(0)), init(jax.random.key(1))


def _rows(case: Case, vocabulary: int) -> Rows:
    rng, count = np.random.default_rng(0), case.rows

    def tokens(width: int) -> tuple[jax.Array, jax.Array]:
        drawn = rng.integers(1, vocabulary, (count, width))
        return jnp.asarray(drawn, jnp.int32), jnp.ones((count, width), bool)

    batch = TokenBatch(
        *tokens(case.prompt), *tokens(case.teacher), *tokens(0), jnp.arange(count), jnp.ones(count)
    )
    completion, mask = tokens(case.new)
    rollout = Rollout(completion, mask, jnp.zeros(completion.shape))
    return Rows(batch, rollout, mask, jnp.full(completion.shape, 1 / completion.size))


def compare(case: Case, found: Mapping[str, Any]) -> tuple[dict[str, Any], list[Bar]]:
    """A row of the table and its ratio: FLOP/s of the step over those of the product."""
    seconds = {side: statistics.median(each) for side, each in found["seconds"].items()}
    rate, fastest = found["flops"] / seconds["step"], found["flops of the product"] / seconds["product"]
    row = {
        "model": case.size,
        "rows": case.rows,
        "tokens": f"{case.prompt}, {case.teacher} + {case.new}",
        "a step": f"{seconds['step']:.3g} s",
        "model TFLOP": f"{found['flops'] / 1e12:.3g}",
        "TFLOP/s": f"{rate / 1e12:.3g}",
        "a large product's": f"{fastest / 1e12:.3g}",
        "of it": f"{100 * rate / fastest:.0f} %",
    }
    if found["peak"]:
        row["of the maker's peak"] = f"{100 * rate / found['peak']:.0f} %"
    return row, [Bar(str(case), "FLOP/s of a large product", rate / fastest)]
