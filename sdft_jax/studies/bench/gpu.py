"""Bytes that decoding moves per token when compiled for a GPU, compared with the minimum; no GPU is needed.

The minimum is the weights and the filled part of the KV cache. Its share of all bytes that the kernels read
and write is the share of the bandwidth limit that `sdft bench decode` can reach on this GPU if nothing stays
in the GPU's cache. The share beyond the cache assumes that small values, which a kernel writes and another
reads, do. The program is compiled ahead of time for one H200 (`pip install
-e '.[cuda]'`), without autotuning, which requires the GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sdft_jax.config import load_config
from sdft_jax.config.settings import SamplingConfig
from sdft_jax.models import Architecture, Model
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.program import STOP, model_shape
from sdft_jax.plan.topologies import described_devices
from sdft_jax.plan.traffic import memory_traffic
from sdft_jax.reporting.charts import Bar
from sdft_jax.sampling import compiled_sample, make_key
from sdft_jax.sharding import Sharding, make_mesh, tree_shardings
from sdft_jax.studies.bench.decode import Case, bytes_per_token
from sdft_jax.studies.bench.models import SIZES, architecture
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish
from sdft_jax.types import Sequences

BANDWIDTH = 4.8e12
"""The memory bandwidth of an H200, in bytes per second (NVIDIA data sheet)."""
KEPT = 25e6
"""The size in bytes of values that an H200 keeps from one kernel to the next: half of its cache."""
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H200"
"""
"""The target description for the compiler (XLA's GpuTargetConfigProto)."""


def main(argv: Sequence[str]) -> None:
    """Compile the cases that the command line selects.

    Raises:
        SdftError: the GPU compiler is not installed.
    """
    args = _parse_arguments(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing runs, so an installed GPU stays free
    start_conditions, shapes = conditions(), {name: _shape(name) for name in args.models}
    sharding = Sharding(make_mesh(devices=devices()))
    cases = [Case(size, batch, args.prompt, args.new) for size in args.models for batch in args.batches]

    def measure_case(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        measurements = measure(case, shapes[case.size], sharding)
        return *compare(case, measurements), dataclasses.asdict(case) | measurements

    rows, bars, details = each_case("gpu", cases, measure_case)
    compiler = f"compiled by jax {jax.__version__} for an H200; bfloat16"
    publish(Measured("gpu", rows, bars, details, compiler, start_conditions), args.output)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("gpu", __doc__)
    options.add_argument(
        "--models",
        nargs="+",
        default=["1.5B", "7B"],
        metavar="NAME",
        help=f"models: {', '.join(SIZES)} for Qwen3 of this size, or a name or directory that "
        "sdft plan takes as model.path, such as gemma-3-4b (default: 1.5B 7B)",
    )
    options.add_argument(
        "--batches", type=positive, nargs="+", default=[64], help="batch sizes (default: 64)"
    )
    options.add_argument("--prompt", type=positive, default=512, help="tokens per prompt (default: 512)")
    options.add_argument("--new", type=positive, default=256, help="tokens to decode per row (default: 256)")
    return options.parse_args(argv)


def devices() -> Sequence[Any]:
    """Return the description of one H200, for which programs can be compiled but not run.

    Raises:
        SdftError: the GPU compiler is not installed.
    """
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # that check needs a driver
    return described_devices("GPU", "an H200", "cuda", platform="cuda", target_config=H200, topology="1x1x1")


def measure(case: Case, shape: Architecture, sharding: Sharding) -> dict[str, float]:
    """Return the bytes that a token moves and needs, peak memory in bytes, and seconds of compilation.

    `moved` counts the decode loop only, not the prefill; `beyond_cache` is the same without values of at most
    `KEPT` bytes that a kernel makes for another.
    """
    model, start = Model(shape, compute_dtype="bfloat16", sharding=sharding), time.monotonic()
    compiled: Any = lower_sampling(model, case).compile(compiler_options={"xla_gpu_autotune_level": "0"})
    elapsed, text = time.monotonic() - start, compiled.as_text()
    return {
        "moved": sum(in_decode_loop(memory_traffic(text), case).values()),
        "beyond_cache": sum(in_decode_loop(memory_traffic(text, KEPT), case).values()),
        "needed": bytes_per_token(model, model.abstract_params("bfloat16"), case),
        "peak": float(compiled.memory_analysis().peak_memory_in_bytes),
        "compile_seconds": elapsed,
    }


def lower_sampling(model: Model, case: Case) -> jax.stages.Lowered:
    """Return greedy sampling until a stop token, lowered for the devices of the model."""

    def array(shape: Sequence[int], dtype: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = model.abstract_params("bfloat16")
    shardings, rows = (
        tree_shardings(model.sharding, model.logical_axes(), params),
        model.sharding.named("batch"),
    )
    params = jax.tree.map(lambda p, own: array(p.shape, p.dtype, own), params, shardings)
    keys = jax.eval_shape(lambda: jax.random.split(make_key(0), case.batch))
    prompt: Any = [array((case.batch, case.prompt), dtype, rows) for dtype in (jnp.int32, jnp.bool_)]
    greedy = SamplingConfig(max_new_tokens=case.new, temperature=0.0)
    return compiled_sample.lower(
        model, params, Sequences(*prompt), array(keys.shape, keys.dtype, rows), greedy, STOP
    )


def in_decode_loop(totals: Mapping[str, float], case: Case) -> dict[str, float]:
    """Return scope -> quantity of one token, without the scopes outside the decode loop."""
    return {scope: x / (case.new - 1) for scope, x in totals.items() if "/decode/while" in scope}


def _shape(model: str) -> Architecture:
    if model in SIZES:
        return architecture(model)
    return model_shape(load_config(None, [f"model.path={model}"]))


def compare(case: Case, measurements: dict[str, float]) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratios, bytes needed over bytes moved; see `measure` for `measurements`."""
    shares = {name: measurements["needed"] / measurements[name] for name in ("moved", "beyond_cache")}
    row = {
        "model": case.size,
        "batch": case.batch,
        "tokens": f"{case.prompt} + {case.new}",
        "a token moves": f"{measurements['moved'] / GIB:.2f} GiB",
        "has to": f"{measurements['needed'] / GIB:.2f} GiB",
        "share": f"{100 * shares['moved']:.0f} %",
        "beyond the cache": f"{measurements['beyond_cache'] / GIB:.2f} GiB",
        "its share": f"{100 * shares['beyond_cache']:.0f} %",
        "least, a token": f"{1e6 * measurements['moved'] / BANDWIDTH:,.0f} us",
        "peak": f"{measurements['peak'] / GIB:.1f} GiB",
        "compiled in": f"{measurements['compile_seconds']:.0f} s",
    }
    return row, [
        Bar(str(case), "bytes needed over bytes moved", shares["moved"]),
        Bar(str(case), "bytes needed over bytes moved beyond the cache", shares["beyond_cache"]),
    ]
