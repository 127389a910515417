"""Bytes and estimated seconds of a decoded token when compiled for a TPU, compared with the minimum; no TPU.

The minimum is the weights and the filled part of the cache, each read once by the chip that holds it. The
seconds are the compiler's estimate, which excludes time spent waiting for other chips.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sdft_jax.config import load_config
from sdft_jax.models import Model
from sdft_jax.plan.candidates import Candidate, make_candidates
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.hlo import estimated_cycles
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.show import compiler
from sdft_jax.plan.traffic import memory_traffic
from sdft_jax.reporting.charts import Bar
from sdft_jax.studies.bench.decode import Case, bytes_per_token
from sdft_jax.studies.bench.gpu import in_decode_loop, lower_sampling
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish

PLACEMENTS: Mapping[str, tuple[str, ...]] = {
    "Qwen2.5-0.5B": ("v5e-1", "fsdp=1"),
    "Qwen2.5-1.5B": ("v5e-1", "fsdp=1"),
    "Llama-3.2-1B": ("v5e-1", "fsdp=1"),
    "SmolLM3-3B": ("v5e-1", "fsdp=1"),
    "Ministral-3-3B-2512": ("v5e-4", "tensor=4"),
    "Phi-4-mini": ("v5e-4", "tensor=4"),
    "gemma-3-4b": ("v5e-4", "tensor=4"),
    "Mistral-7B-v0.3": ("v5e-4", "tensor=4"),
    "Olmo-3-7B": ("v5e-4", "fsdp=2,tensor=2"),
    "gemma-4-E2B": ("v5e-1", "fsdp=1"),
    "gemma-4-E4B": ("v5e-4", "fsdp=2,tensor=2"),
    "gemma-4-12B": ("v5e-8", "tensor=8", "sharding.full_kv_heads=null"),
    "gemma-4-26B-A4B": ("v5e-16", "expert=2,tensor=8", "sharding.full_kv_heads=null"),
    "Qwen3.5-9B": ("v5e-4", "tensor=4"),
    "gpt-oss-20b": ("v5e-8", "expert=2,tensor=4"),
    "Qwen3-30B-A3B": ("v5e-8", "expert=4,tensor=2"),
    "Qwen3.5-35B-A3B": ("v5e-16", "expert=8,tensor=2"),
}
"""Model -> a slice that holds it in bfloat16 with 64 prompts of 512 tokens, a mesh, and settings."""


def main(argv: Sequence[str]) -> None:
    """Compile the cases that the command line selects.

    Raises:
        SdftError: the TPU compiler is not installed.
    """
    args = _parse_arguments(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing runs, so an installed TPU stays free
    start_conditions = conditions()
    cases = [Case(model, args.batch, prompt, args.new) for model in args.models for prompt in args.prompts]

    def measure_case(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        measurements = measure(case)
        return *compare(case, measurements), dataclasses.asdict(case) | measurements

    rows, bars, details = each_case("decode_tpu", cases, measure_case)
    machine = f"compiled by {compiler()} for TPUs; bfloat16"
    publish(Measured("decode_tpu", rows, bars, details, machine, start_conditions), args.output)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("decode_tpu", __doc__)
    options.add_argument(
        "--models",
        nargs="+",
        choices=list(PLACEMENTS),
        default=list(PLACEMENTS),
        metavar="NAME",
        help=f"models: {', '.join(PLACEMENTS)} (default: all; each takes a minute or more)",
    )
    options.add_argument("--batch", type=positive, default=64, help="batch size (default: 64)")
    options.add_argument(
        "--prompts", type=positive, nargs="+", default=[512], help="tokens per prompt (default: 512)"
    )
    options.add_argument("--new", type=positive, default=256, help="tokens to decode per row (default: 256)")
    return options.parse_args(argv)


def measure(case: Case) -> dict[str, float]:
    """Return the bytes that a token moves and needs on each chip, its seconds as estimated by the compiler
    and at the chip's bandwidth, peak memory in bytes, and seconds of compilation.
    """
    name, mesh, *settings = PLACEMENTS[case.size]
    config = load_config(None, [f"model.path={case.size}", *settings])
    candidate: Candidate = make_candidates(config, [name], mesh, ())[0]
    chip, start = candidate.topology.generation, time.monotonic()
    model = Model(model_shape(config), compute_dtype="bfloat16", sharding=candidate.sharding)
    compiled: Any = lower_sampling(model, case).compile()
    elapsed, text = time.monotonic() - start, compiled.as_text()
    needed = bytes_per_token(model, model.abstract_params("bfloat16"), case) / candidate.topology.size
    cycles = sum(in_decode_loop(estimated_cycles(text), case).values())
    return {
        "moved": sum(in_decode_loop(memory_traffic(text), case).values()),
        "needed": needed,
        "seconds": cycles / (chip.clock * 1e9),
        "least_seconds": needed / (chip.bandwidth * 1e9),
        "peak": float(compiled.memory_analysis().peak_memory_in_bytes),
        "compile_seconds": elapsed,
    }


def compare(case: Case, measurements: Mapping[str, float]) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratios, what a token needs over what the program takes; see `measure`."""
    shares = {
        "bytes": measurements["needed"] / measurements["moved"],
        "time": measurements["least_seconds"] / measurements["seconds"],
    }
    name, mesh, *_ = PLACEMENTS[case.size]
    row = {
        "model": case.size,
        "slice": name,
        "mesh": mesh.replace(",", ", "),
        "tokens": f"{case.prompt:,} + {case.new}",
        "a token moves": f"{measurements['moved'] / GIB:.2f} GiB",
        "has to": f"{measurements['needed'] / GIB:.2f} GiB",
        "share": f"{100 * shares['bytes']:.0f} %",
        "estimated": f"{1e3 * measurements['seconds']:.2f} ms",
        "at peak bandwidth": f"{1e3 * measurements['least_seconds']:.2f} ms",
        "its share": f"{100 * shares['time']:.0f} %",
        "peak": f"{measurements['peak'] / GIB:.1f} GiB",
    }
    return row, [
        Bar(str(case), f"{what} needed over {what} of the program", share) for what, share in shares.items()
    ]
