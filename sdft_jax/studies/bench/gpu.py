"""What the GPU compiler makes of decoding, without a GPU: the bytes that a token moves, and those it has to.

It has to read the weights and the filled part of the cache. Their share of all that kernels read and write is
what `sdft bench decode` can reach of the bandwidth limit on such a GPU, or a little more where a cache spares
the memory something. Compiled ahead of time for one H200 (`pip install 'sdft_jax[cuda]'`), without the tuning
that needs the GPU itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.models import Model
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.gpu_traffic import memory_traffic
from sdft_jax.plan.topologies import described_devices
from sdft_jax.reporting.charts import Bar
from sdft_jax.sampling.decode import compiled_sample
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.studies.bench.decode import Case, bytes_per_token
from sdft_jax.studies.bench.models import SIZES, architecture
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, publish

BANDWIDTH = 4.8e12
"""Bytes a second of an H200's memory (data sheet of NVIDIA)."""
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
"""What the compiler asks about a GPU (XLA's GpuTargetConfigProto)."""


def main(words: Sequence[str]) -> None:
    """Compile the cases of the command line.

    Raises:
        SdftError: the GPU compiler is not installed.
    """
    a = _arguments(words)
    jax.config.update("jax_platforms", "cpu")  # nothing runs: a GPU that is there stays free
    began, sharding = conditions(), Sharding(make_mesh(devices=devices()))
    cases = [Case(size, batch, a.prompt, a.new) for size in a.models for batch in a.batches]

    def measured(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        found = measure(case, sharding)
        return *compare(case, found), dataclasses.asdict(case) | found

    rows, bars, details = each_case("gpu", cases, measured)
    compiler = f"compiled by jax {jax.__version__} for an H200; bfloat16"
    publish(Measured("gpu", rows, bars, details, compiler, began), a.output)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("gpu", __doc__)
    made.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["1.5B", "7B"],
        help="models by their parameters (1.5B 7B)",
    )
    made.add_argument("--batches", type=int, nargs="+", default=[64], help="rows at a time (64)")
    made.add_argument("--prompt", type=int, default=512, help="tokens of every prompt (512)")
    made.add_argument("--new", type=int, default=256, help="tokens to decode (256)")
    return made.parse_args(words)


def devices() -> Sequence[Any]:
    """One H200 to compile for; it can run nothing.

    Raises:
        SdftError: the GPU compiler is not installed.
    """
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which asks CUDA's libraries for a driver
    return described_devices("GPU", "an H200", "cuda", platform="cuda", target_config=H200, topology="1x1x1")


def measure(case: Case, sharding: Sharding) -> dict[str, float]:
    """Bytes that a token of the decode loop moves and needs, bytes at the peak, seconds to compile."""
    model = Model(architecture(case.size), compute_dtype="bfloat16", sharding=sharding)
    there = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.named())
    params = jax.tree.map(lambda p: there(p.shape, p.dtype), model.abstract_params("bfloat16"))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), case.batch))
    tokens, mask = (there((case.batch, case.prompt), dtype) for dtype in (jnp.int32, jnp.bool_))
    greedy = SamplingConfig(max_new_tokens=case.new, temperature=0.0)
    begun = time.monotonic()
    lowered = compiled_sample.lower(model, params, tokens, mask, there(keys.shape, keys.dtype), greedy, (), 0)
    compiled: Any = lowered.compile(compiler_options={"xla_gpu_autotune_level": "0"})
    spent, traffic = time.monotonic() - begun, memory_traffic(compiled.as_text())
    return {
        "moved": sum(count for scope, count in traffic.items() if "/decode/while" in scope) / (case.new - 1),
        "needed": bytes_per_token(model, params, case),
        "peak": float(compiled.memory_analysis().peak_memory_in_bytes),
        "compile_seconds": spent,
    }


def compare(case: Case, found: dict[str, float]) -> tuple[dict[str, Any], list[Bar]]:
    """A row of the table and its ratio: bytes needed over bytes moved."""
    share = found["needed"] / found["moved"]
    row = {
        "model": case.size,
        "batch": case.batch,
        "tokens": f"{case.prompt} + {case.new}",
        "a token moves": f"{found['moved'] / GIB:.2f} GiB",
        "has to": f"{found['needed'] / GIB:.2f} GiB",
        "share": f"{100 * share:.0f} %",
        "least, a token": f"{1e6 * found['moved'] / BANDWIDTH:,.0f} us",
        "peak": f"{found['peak'] / GIB:.1f} GiB",
        "compiled in": f"{found['compile_seconds']:.0f} s",
    }
    return row, [Bar(str(case), "bytes needed over bytes moved", share)]
