"""Compiling the whole update against the depth of its model: a part of `sdft bench startup`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sdft_jax.algorithm.state import check_batch, make_model
from sdft_jax.config import load_config
from sdft_jax.plan.program import lower_update
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
"""Compilation of the deepest over that of the shallowest, up to which it counts as independent of depth."""


def devices_of(topology: str) -> dict[str, Sequence[Any]]:
    """Name -> devices to compile for, without a cache from here on: of a TPU slice, unless "", and a CPU.

    Raises:
        SdftError: there is no such slice, or no TPU compiler.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    slices = [parse_topology(topology)] if topology else []
    return {one.name: topology_devices(one) for one in slices} | {"cpu": jax.devices("cpu")[:1]}


def depths(
    targets: Mapping[str, Sequence[Any]], layers: Sequence[int], rounds: int, step: Callable[[str], None]
) -> tuple[Part, list[str]]:
    """Seconds of tracing and compiling the update against depth, and a verdict for each target.

    The least of several rounds counts, since what disturbs a compilation only adds to it.

    Args:
        targets: name -> devices to compile for, which need not be there.
        layers: depths; before them, uncounted, one layer, since the first also loads the compiler.
        rounds: in each, every depth is compiled once.
        step: told of each compilation that begins.

    Raises:
        SdftError: a target has more devices than the batch can be divided among.
    """
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    details: dict[str, Any] = {}
    verdicts: list[str] = []
    for target, devices in targets.items():
        step(f"{target}, warming up")
        compilation(1, devices)
        every: dict[int, list[Mapping[str, float]]] = {depth: [] for depth in sorted(layers)}
        for _ in range(rounds):
            for depth, of_depth in every.items():
                step(f"{target}, {depth} layers")
                of_depth.append(compilation(depth, devices))
        found = {depth: {key: min(x[key] for x in of) for key in of[0]} for depth, of in every.items()}
        compiling = {depth: x["compiling"] for depth, x in found.items()}
        least, most = min(found), max(found)
        rows += [
            row(
                f"compiling for {target}, {depth} layers",
                compiling[depth],
                f"{least} layers",
                compiling[least],
                tracing=f"{x['tracing']:.3g}",
                operations=f"{x['operations']:,}",
            )
            for depth, x in found.items()
        ]
        bars.append(
            Bar(f"compiling for {target}: {least} / {most} layers", RATIO, compiling[least] / compiling[most])
        )
        details[target], verdicts = every, [*verdicts, verdict(target, found)]
    return Part(rows, bars, details), verdicts


def compilation(layers: int, devices: Sequence[Any]) -> dict[str, float]:
    """Seconds of `tracing` the update that training runs, as `sdft plan` does, and of `compiling` it.

    `operations` is how many the compiled program has; it tells of growth without a clock.
    """
    config = load_config(None, SHAPES)
    sharding = Sharding(make_mesh(fsdp=-1, devices=devices), config.sharding)
    check_batch(config, sharding)
    model = make_model(config, architecture("1M", num_hidden_layers=layers), sharding)
    begun = time.perf_counter()
    lowered = lower_update(config, model, sharding)
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"tracing": traced - begun, "compiling": time.perf_counter() - traced}
    return seconds | {"operations": len(re.findall(r"^ .* = ", compiled.as_text(), re.M))}


def verdict(target: str, found: Mapping[int, Mapping[str, float]]) -> str:
    """Whether compilation grows with depth, in a sentence; `found` is what `compilation` gives, by depth."""
    least, most = min(found), max(found)
    seconds, size = (found[most][key] / found[least][key] for key in ("compiling", "operations"))
    grows = "grows" if seconds > FLAT else "does not grow"
    told = (
        f"{most} layers take {seconds:.2f} times as long as {least}, in {size:.2f} times as many operations"
    )
    return f"Compilation for {target} {grows} with depth: {told}."
