"""Compilation time of the whole update by model depth, a part of `sdft bench startup`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sdft_jax.algorithm import check_batch, make_model
from sdft_jax.config import load_config
from sdft_jax.plan.program import lower_update, planned_learner
from sdft_jax.plan.topologies import parse_topology, topology_devices
from sdft_jax.reporting.charts import Bar
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.studies.bench.models import architecture
from sdft_jax.studies.bench.results import RATIO, Part, row

SHAPES = (
    "train.batch_size=8",
    "data.max_prompt=32",
    "data.max_teacher_prompt=64",
    "sampling.max_new_tokens=32",
    "divergence.chunk=128",
)
FLAT = 1.25
"""The maximum ratio of compilation time, deepest to shallowest model, that counts as independent of depth."""


def devices_of(topology: str) -> dict[str, Sequence[Any]]:
    """Return name -> devices to compile for: a CPU and, unless `topology` is empty, a TPU slice.

    Also disables JAX's compilation cache in this process.

    Raises:
        SdftError: `topology` is unknown, or the TPU compiler is not installed.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    slices = [parse_topology(topology)] if topology else []
    return {one.name: topology_devices(one) for one in slices} | {"cpu": jax.devices("cpu")[:1]}


def depths(
    targets: Mapping[str, Sequence[Any]], layers: Sequence[int], rounds: int, step: Callable[[str], None]
) -> tuple[Part, list[str]]:
    """Measure the seconds of tracing and compiling the update by depth, and return a verdict for each target.

    The minimum over the rounds counts, since disturbances only add to the time of a compilation.

    Args:
        targets: name -> devices to compile for; they need not exist on this machine.
        layers: depths. Before them, a model of one layer is compiled but not counted, since the first
            compilation also loads the compiler.
        rounds: the number of compilations of each depth.
        step: called with a description before each compilation.

    Raises:
        SdftError: the batch cannot be divided among the devices of a target.
    """
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    details: dict[str, Any] = {}
    verdicts: list[str] = []
    for target, devices in targets.items():
        step(f"{target}, warming up")
        compilation(1, devices)
        results: dict[int, list[Mapping[str, float]]] = {depth: [] for depth in sorted(layers)}
        for _ in range(rounds):
            for depth, runs in results.items():
                step(f"{target}, {depth} layers")
                runs.append(compilation(depth, devices))
        fastest = {
            depth: {key: min(x[key] for x in runs) for key in runs[0]} for depth, runs in results.items()
        }
        compiling = {depth: x["compiling"] for depth, x in fastest.items()}
        shallowest, deepest = min(fastest), max(fastest)
        rows += [
            row(
                f"compiling for {target}, {depth} layers",
                compiling[depth],
                f"{shallowest} layers",
                compiling[shallowest],
                tracing=f"{x['tracing']:.3g}",
                operations=f"{x['operations']:,}",
            )
            for depth, x in fastest.items()
        ]
        bars.append(
            Bar(
                f"compiling for {target}: {shallowest} / {deepest} layers",
                RATIO,
                compiling[shallowest] / compiling[deepest],
            )
        )
        details[target] = results
        verdicts.append(verdict(target, fastest))
    return Part(rows, bars, details), verdicts


def compilation(layers: int, devices: Sequence[Any]) -> dict[str, float]:
    """Return the seconds of `tracing` and of `compiling` the training update, as `sdft plan` compiles it.

    `operations`, the number of operations in the compiled program, measures growth without timing noise.
    """
    config = load_config(None, SHAPES)
    sharding = Sharding(make_mesh(fsdp=-1, devices=devices), config.sharding)
    check_batch(config, sharding)
    model = make_model(config, architecture("1M", num_hidden_layers=layers), sharding)
    start = time.perf_counter()
    lowered = lower_update(planned_learner(config, model))
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"tracing": traced - start, "compiling": time.perf_counter() - traced}
    return seconds | {"operations": len(re.findall(r"^ .* = ", compiled.as_text() or "", re.M))}


def verdict(target: str, results: Mapping[int, Mapping[str, float]]) -> str:
    """Return a sentence that says if compilation time grows with depth.

    Args:
        target: the name of the device.
        results: depth -> the result of `compilation`.
    """
    shallowest, deepest = min(results), max(results)
    seconds, size = (results[deepest][key] / results[shallowest][key] for key in ("compiling", "operations"))
    grows = "grows" if seconds > FLAT else "does not grow"
    return (
        f"Compilation time for {target} {grows} with depth: {deepest} layers take {seconds:.2f} "
        f"times as long as {shallowest} layers, with {size:.2f} times as many operations."
    )
