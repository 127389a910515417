"""Timeline of device work and host activity, read from a trace of several steps of `sdft train`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

from sdft_jax.reporting.style import COLOURS, FIGURE_STYLE, GREY, save_figure
from sdft_jax.training.run_directory import RunDirectory

UPDATE = "train"
"""The name that `training/loop.py` gives to the dispatch of an update in its traces."""
HOST = {
    UPDATE: "starts the update",
    "report": "reports",
    "wait": "waits for the device",
    "next batch": "makes the next batch",
}
"""Name of a host activity in a trace -> its label in the plot; later ones are nested in earlier ones."""

Span = tuple[float, float]
"""Begin and end, in seconds after the start of the first update."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Device and host spans of consecutive steps."""

    steps: Sequence[float]
    """The time at which the host dispatched each update, in seconds; the first is 0."""
    device: Sequence[Span]
    """The spans in which the device was busy, sorted and disjoint."""
    host: Mapping[str, Sequence[Span]]
    """The spans of each host activity, by its name in the trace."""


def read_timeline(output: str | os.PathLike[str]) -> Timeline:
    """Return the timeline of the newest trace of a run, for the first device of the process that wrote it."""
    file = max(RunDirectory(str(output)).profile.rglob("*.xplane.pb"), key=os.path.getmtime)
    planes = list(ProfileData.from_file(str(file)).planes)
    named: dict[str, list[Any]] = {name: [] for name in HOST}
    for event in _events(planes):
        if event.name in named:
            named[event.name].append(event)
    origin = min(event.start_ns for event in named[UPDATE])

    def seconds(spans: Iterable[tuple[float, float]]) -> list[Span]:
        return sorted(((begin - origin) / 1e9, (end - origin) / 1e9) for begin, end in spans)

    host = {name: seconds((e.start_ns, e.end_ns) for e in events) for name, events in named.items()}
    return Timeline([begin for begin, _ in host[UPDATE]], merge(seconds(_work(planes))), host)


def _events(planes: Iterable[Any]) -> Iterable[Any]:
    return (event for plane in planes for line in plane.lines for event in line.events)


def _work(planes: Sequence[Any]) -> Iterable[tuple[float, float]]:
    """Return the spans in which the device executed a program, in nanoseconds.

    An accelerator has its own plane. Operations on a CPU are in the lines of its threads, with the ID of the
    execution that they belong to; an execution spans its first to its last operation.
    """
    accelerators = sorted(
        (plane for plane in planes if plane.name.startswith(("/device:GPU:", "/device:TPU:"))),
        key=lambda plane: plane.name,
    )
    if accelerators:
        lines = list(accelerators[0].lines)
        # on a TPU, other lines span whole steps
        modules = [line for line in lines if line.name == "XLA Modules"]
        return [(e.start_ns, e.end_ns) for line in modules or lines for e in line.events]
    executions: dict[int, tuple[float, float]] = {}
    for event in _events(planes):
        run_id = next((value for name, value in event.stats if name == "run_id"), None)
        if run_id is not None:
            begin, end = executions.get(run_id, (math.inf, 0.0))
            executions[run_id] = min(begin, event.start_ns), max(end, event.end_ns)
    return executions.values()


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return the union of the spans, sorted and disjoint."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def plot_timelines(timelines: Mapping[str, Timeline], path: Path, caption: str) -> None:
    """Plot each timeline in two lanes, device and host, up to the dispatch of its last update."""
    import matplotlib
    from matplotlib.figure import Figure

    colors = dict(zip(HOST, (COLOURS[1], COLOURS[2], "#dddddd", COLOURS[4]), strict=True))
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(15, 1.1 + 1.9 * len(timelines)), layout="constrained")
        for axes, (name, timeline) in zip(
            figure.subplots(len(timelines), 1, squeeze=False)[:, 0], timelines.items(), strict=True
        ):
            axes.broken_barh(
                _milliseconds(timeline.device), (1.1, 0.8), color=COLOURS[0], label="the device works"
            )
            for activity, spans in timeline.host.items():
                axes.broken_barh(
                    _milliseconds(spans), (0, 0.8), color=colors[activity], label=f"the host {HOST[activity]}"
                )
            axes.set(title=name, yticks=[0.4, 1.5], yticklabels=["host", "device"], xlabel="milliseconds")
            axes.set_xlim(0, 1e3 * timeline.steps[-1])
            axes.grid(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5)
        figure.supxlabel(caption, color=GREY, fontsize=10)
        save_figure(figure, path, dpi=100)


def _milliseconds(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """Return (begin, length) of each span, in milliseconds."""
    return [(1e3 * begin, 1e3 * (end - begin)) for begin, end in spans]
