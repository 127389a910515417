"""A plan as tables, JSON and a picture."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.plan.estimate import STATE, Estimate
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.planner import Candidate, candidates, mesh_name, plan
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.run_plot import COLOURS, STYLE
from sdft_jax.reporting.tables import summary_table
from sdft_jax.sharding.rules import MESH_AXES

CAVEAT = (
    "Memory is what the compiler allocates. Times are estimates, measured on no TPU: the compiler's cycles "
    "for each operation, without waiting for other chips, and attention kernels at the chip's peak rate; "
    "beside them what its peak rates allow for all."
)
MESH = "data x fsdp x tensor"
"""Heading of the meshes in a table."""


def run(
    config: Config,
    topologies: Sequence[str],
    mesh: str | None,
    rules: Sequence[str],
    output: str | None,
    largest: bool,
) -> list[Estimate]:
    """Plan, print tables, and write plan.json and plan.png into `output`, if there is one.

    Raises:
        SdftError: a mistake in what was asked for, before anything is compiled.
    """
    every: list[Candidate] = candidates(config, topologies, mesh, rules)
    if output and Path(output).is_file():
        raise SdftError(f"--output {output} is a file: give a directory.")
    console = Console()
    with bar("compiling", len(every)) as show_progress:
        found, left_out = plan(config, every, largest, show_progress)
    for topology in dict.fromkeys(one.topology for one in found):
        chosen = [one for one in found if one.topology == topology]
        title = (
            f"{config.model.path} on {topology}, batch {config.train.batch_size}, {chosen[0].limit / GIB} GiB"
        )
        console.print(summary_table([row(one) for one in chosen], title))
        console.print()
        for one in chosen[1:]:
            if one.refusal:
                console.print(f"{mesh_name(one.mesh)}: {one.refusal}", highlight=False)
        for line in details(chosen[0]):
            console.print(line, highlight=False)
        console.print()
    for sentence in left_out:
        console.print(f"left out: {sentence}", highlight=False)
    console.print(f"{CAVEAT} {compiler()}.", highlight=False)
    if output:
        for path in write(config, found, left_out, Path(output)):
            console.print(str(path), highlight=False, soft_wrap=True)
    return found


def compiler() -> str:
    """Versions of what compiled."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")]
    return ", ".join(versions)


def row(one: Estimate) -> dict[str, Any]:
    """One mesh in a line: GiB on each device, bytes that it receives in a step, seconds of a step."""
    name = "x".join(str(one.mesh[axis]) for axis in MESH_AXES) + (f" {one.rules}" if one.rules else "")
    cells = {
        MESH: name,
        "state": f"{one.state / GIB:.2f}",
        "peak": f"{one.peak / GIB:.2f}",
        "fits": "yes" if one.fits else "no",
        "free": f"{(one.limit - one.peak) / GIB:.2f}",
    }
    if one.refusal:
        return cells
    return cells | {
        "largest batch": one.largest_batch,
        "GB moved": f"{sum(x.bytes for x in one.exchanges) / 1e9:.1f}",
        "est. s": f"{one.total_seconds:.2f}",
        "limit s": f"{sum(one.roofline.values()):.2f}",
    }


def details(one: Estimate) -> list[str]:
    """A mesh in words: where memory, traffic and time go, and what would make it smaller."""
    lines = [f"{mesh_name(one.mesh)}: of known shapes, in GiB a device: {_gib(one.parts)}."]
    if one.refusal:
        lines.append(f"It does not fit: {one.refusal}.")
    else:
        lines.append(
            f"At the peak of {one.peak / GIB:.2f} GiB, {one.state / GIB:.2f} is the state; the rest, by the "
            f"phase that made it: {_gib(one.temporaries)}. Largest: {one.dominant}."
        )
        moved = ", ".join(
            f"{kind} {size / 1e9:.2f} GB in {times:.0f}" for kind, (size, times) in by_kind(one).items()
        )
        lines.append(f"Received by a device in a step: {moved or 'nothing'}.")
        lines.append(
            f"{one.flops / 1e12:.2f} TFLOP a device and step. Seconds, estimated: {_seconds(one.seconds)}; "
            f"at peak rates: {_seconds(one.roofline)}. Compiled in {one.compile_seconds:.0f} s."
        )
    if one.advice:
        lines.append(f"What would make it smaller: {'; '.join(one.advice)}.")
    return lines


def _gib(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items() if size > 0.005 * GIB)


def _seconds(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in spent.items() if seconds > 0.005)


def by_kind(one: Estimate) -> dict[str, tuple[float, float]]:
    """Kind of exchange -> (bytes that a device receives, times) in a step, the largest first."""
    found: dict[str, tuple[float, float]] = {}
    for x in one.exchanges:
        size, times = found.get(x.kind, (0.0, 0.0))
        found[x.kind] = (size + x.bytes, times + x.times)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def write(config: Config, found: Sequence[Estimate], left_out: Sequence[str], output: Path) -> list[Path]:
    """plan.json and plan.png."""
    output.mkdir(parents=True, exist_ok=True)
    plain = {
        "model": config.model.path,
        "compiled by": compiler(),
        "estimates": [
            dataclasses.asdict(one)
            | {"fits": one.fits, "state": one.state, "total_seconds": one.total_seconds}
            for one in found
        ],
        "left out": list(left_out),
        "caveat": CAVEAT,
    }
    (output / "plan.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    _draw(config, found, output / "plan.png")
    return [output / "plan.json", output / "plan.png"]


def _draw(config: Config, found: Sequence[Estimate], path: Path) -> None:
    """Memory of every mesh, stacked by part under the limit; estimated seconds by phase beside it."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [
        f"{one.topology}\n{mesh_name(one.mesh)}" + (f"\n{one.rules}" if one.rules else "") for one in found
    ]
    memory = [
        {name: one.parts[name] / GIB for name in STATE}
        | {f"+ {name}": size / GIB for name, size in one.temporaries.items()}
        for one in found
    ]
    height = 2.3 + 0.6 * len(found)  # a title above; below, an axis, three lines of a legend and a caption
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, height))
        left, right = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(0.13, 1.65 / height, 0.985, 1 - 0.35 / height, wspace=0.06)
        _stack(left, names, memory, "Memory of a device", "GiB")
        for place, one in enumerate(found):
            left.plot([one.limit / GIB] * 2, [place - 0.4, place + 0.4], color="#222222", linewidth=2)
        _stack(right, names, [dict(one.seconds) for one in found], "A step", "seconds, estimated")
        for place, one in enumerate(found):
            bound = sum(one.roofline.values())
            right.plot([bound] * 2, [place - 0.4, place + 0.4], color="#222222", linewidth=2, linestyle=":")
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
            f"{config.model.path}, batch {config.train.batch_size}. +: besides the state, by phase; line: "
            f"what a device has; dotted: at peak rates. Compiled by {compiler()}; measured on no TPU.",
            fontsize=8.5,
            color="#555555",
            ha="center",
        )
        figure.savefig(path, dpi=150)


def _stack(axis: Any, names: Sequence[str], rows: Sequence[dict[str, float]], title: str, label: str) -> None:
    """Bars of parts, each a row; what is nowhere worth a hundredth of its bar has no colour of its own."""
    kinds = list(dict.fromkeys(key for row in rows for key, x in row.items() if x > 0.01 * sum(row.values())))
    starts = [0.0] * len(rows)
    shades = [*COLOURS, *(f"{colour}80" for colour in COLOURS)]
    for kind, colour in zip(kinds, shades, strict=False):
        widths = [row.get(kind, 0.0) for row in rows]
        axis.barh(range(len(rows)), widths, left=starts, color=colour, label=kind, height=0.7)
        starts = [a + b for a, b in zip(starts, widths, strict=True)]
    axis.set(title=title, xlabel=label, yticks=range(len(rows)), yticklabels=names)
