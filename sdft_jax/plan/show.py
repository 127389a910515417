"""Estimates as table rows, sentences, JSON and a figure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config import Config
from sdft_jax.files import write_text
from sdft_jax.plan.candidates import mesh_name
from sdft_jax.plan.estimate import STATE, Estimate
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.prices import Cost, cost_of
from sdft_jax.reporting.style import BLACK, COLOURS, STYLE, save_figure
from sdft_jax.sharding.rules import MESH_AXES

CAVEAT = (
    "Memory is the compiler's allocation. Times are estimates, not measured on a TPU: the compiler's cycles "
    "for each operation, without waiting for other chips, and attention kernels at the chip's peak rate. "
    "'limit s' is the time of the whole update at the chip's peak rates."
)
MESH = "data x fsdp x tensor"
"""The heading of the mesh column; a row with several devices along expert has four numbers, with expert
before tensor."""


def compiler() -> str:
    """Return the versions of the compiler's packages."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))


def row(estimate: Estimate) -> dict[str, Any]:
    """Return the table row of an estimate: GiB per device, GB received per device and step, seconds per
    step.
    """
    name = "x".join(str(estimate.mesh[axis]) for axis in MESH_AXES if axis != "expert")
    experts = estimate.mesh.get("expert", 1)
    name += f", expert {experts}" if experts > 1 else ""
    cells = {
        MESH: f"{name} {estimate.rules}" if estimate.rules else name,
        "state": f"{estimate.state / GIB:.2f}",
        "peak": f"{estimate.peak / GIB:.2f}",
        "fits": "yes" if estimate.fits else "no",
        "free": f"{(estimate.limit - estimate.peak) / GIB:.2f}",
    }
    if estimate.refusal:
        return cells
    return cells | {
        "largest batch": estimate.largest_batch,
        "GB received": f"{sum(x.bytes for x in estimate.exchanges) / 1e9:.1f}",
        "est. s": f"{estimate.total_seconds:.2f}",
        "limit s": f"{sum(estimate.roofline.values()):.2f}",
    }


def details(estimate: Estimate, cost: Cost | None = None) -> list[str]:
    """Return sentences about the memory, communication, time and cost of an estimate, and its advice."""
    mesh = mesh_name(estimate.mesh)
    lines = [f"{mesh}: arrays of known shape, in GiB per device: {_gib(estimate.parts)}."]
    if estimate.refusal:
        lines.append(f"It does not fit: {estimate.refusal}.")
    else:
        lines.append(
            f"Peak memory: {estimate.peak / GIB:.2f} GiB per device, of which the state is "
            f"{estimate.state / GIB:.2f}; the rest, by the phase that allocated it: "
            f"{_gib(estimate.temporaries)}. Largest part: {estimate.dominant}."
        )
        received = ", ".join(
            f"{kind} {size / 1e9:.2f} GB in {times:.0f} operations"
            for kind, (size, times) in _received(estimate).items()
        )
        lines.append(f"Received per device and step: {received or 'nothing'}.")
        lines.append(
            f"{estimate.flops / 1e12:.2f} TFLOP per device and step. Estimated seconds: "
            f"{_seconds(estimate.seconds)}; at peak rates: {_seconds(estimate.roofline)}. Compiled in "
            f"{estimate.compile_seconds:.0f} s."
        )
        lines += [f"Cost: {cost}"] if cost else []
    if estimate.advice:
        lines.append(f"To reduce memory: {'; '.join(estimate.advice)}.")
    return lines


def write(
    config: Config,
    estimates: Sequence[Estimate],
    left_out: Sequence[str],
    output: Path,
    price: float | None = None,
) -> list[Path]:
    """Write plan.json and plan.png into the directory `output`, and return their paths.

    `price` is that of `cost_of`.
    """
    output.mkdir(parents=True, exist_ok=True)
    costs = [cost_of(config, x, price) for x in estimates]
    report = {
        "model": config.model.path,
        "compiled by": compiler(),
        "estimates": [
            dataclasses.asdict(x)
            | {"fits": x.fits, "state": x.state, "total_seconds": x.total_seconds}
            | {"cost": dataclasses.asdict(cost) if cost else None}
            for x, cost in zip(estimates, costs, strict=True)
        ],
        "left out": list(left_out),
        "caveat": CAVEAT,
    }
    write_text(output / "plan.json", json.dumps(report, indent=1))
    _draw(config, estimates, output / "plan.png")
    return [output / "plan.json", output / "plan.png"]


def _gib(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items() if size > 0.005 * GIB)


def _seconds(times: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items() if seconds > 0.005)


def _received(estimate: Estimate) -> dict[str, tuple[float, float]]:
    """Return kind of collective -> (bytes that a device receives, number of operations) per step, the largest
    first.
    """
    totals: dict[str, tuple[float, float]] = {}
    for collective in estimate.exchanges:
        size, times = totals.get(collective.kind, (0.0, 0.0))
        totals[collective.kind] = (size + collective.bytes, times + collective.times)
    return dict(sorted(totals.items(), key=lambda item: -item[1][0]))


def _draw(config: Config, estimates: Sequence[Estimate], path: Path) -> None:
    """Draw the memory of each mesh, stacked by part, with its limit, next to the seconds by phase."""
    import matplotlib
    from matplotlib.figure import Figure

    names = ["\n".join(filter(None, (x.topology, mesh_name(x.mesh), x.rules))) for x in estimates]
    memory = [
        {name: x.parts[name] / GIB for name in STATE}
        | {f"+ {name}": size / GIB for name, size in x.temporaries.items()}
        for x in estimates
    ]
    limits = [x.limit / GIB for x in estimates]
    bounds = [sum(x.roofline.values()) for x in estimates]
    height = 2.3 + 0.6 * len(estimates)  # a title above; an axis, a legend of three lines and a caption below
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, height))
        left, right = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(0.13, 1.65 / height, 0.985, 1 - 0.35 / height, wspace=0.06)
        _stack(left, names, memory, "GiB")
        left.set_title("Memory per device")
        _mark(left, limits, "-")
        _stack(right, names, [x.seconds for x in estimates], "seconds, estimated")
        right.set_title("Time per step")
        _mark(right, bounds, ":")
        left.invert_yaxis()
        for axis, x in ((left, 0.13), (right, 0.57)):
            figure.legend(
                *axis.get_legend_handles_labels(),
                fontsize=8.5,
                loc="upper left",
                ncols=4,
                bbox_to_anchor=(x, 1.1 / height),
            )
        figure.text(
            0.5,
            0.12 / height,
            f"{config.model.path}, batch {config.train.batch_size}. +: temporary arrays by phase; solid "
            "line: available memory; dotted line: at peak rates. "
            f"Compiled by {compiler()}; not measured on a TPU.",
            fontsize=8.5,
            color="#555555",
            ha="center",
        )
        save_figure(figure, path)


def _stack(axis: Any, names: Sequence[str], bars: Sequence[Mapping[str, float]], label: str) -> None:
    """Draw stacked horizontal bars, without the parts that are below one percent of every bar."""
    kinds = list(
        dict.fromkeys(key for parts in bars for key, x in parts.items() if x > 0.01 * sum(parts.values()))
    )
    starts = [0.0] * len(bars)
    colors = [*COLOURS, *(f"{color}80" for color in COLOURS)]
    for kind, color in zip(kinds, colors, strict=False):
        widths = [parts.get(kind, 0.0) for parts in bars]
        axis.barh(range(len(bars)), widths, left=starts, color=color, label=kind, height=0.7)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axis.set(xlabel=label, yticks=range(len(bars)), yticklabels=names)


def _mark(axis: Any, values: Sequence[float], linestyle: str) -> None:
    """Draw a vertical line across each bar."""
    for place, value in enumerate(values):
        axis.plot([value] * 2, [place - 0.4, place + 0.4], color=BLACK, linewidth=2, linestyle=linestyle)
