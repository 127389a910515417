"""When the device works and what the host does meanwhile, from the trace of some steps of `sdft train`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

from sdft_jax.reporting.charts import FIGURE_STYLE, GREY
from sdft_jax.reporting.run_plot import COLOURS
from sdft_jax.training.profiling import DIRECTORY

UPDATE = "train"
"""What `training.py` calls the start of an update in its traces."""
HOST = {
    UPDATE: "starts the update",
    "report": "reports",
    "wait": "waits for the device",
    "next batch": "makes the next batch",
}
"""What else it names there, later ones inside earlier ones -> what it is called here."""

Span = tuple[float, float]
"""Begin and end, in seconds from the first update's start."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Some steps, one after the other."""

    steps: Sequence[float]
    """When the host started each update, in seconds; the first is 0."""
    device: Sequence[Span]
    """When the device worked, in order and apart."""
    host: Mapping[str, Sequence[Span]]
    """What the host did."""


def read_timeline(output: str | os.PathLike[str]) -> Timeline:
    """The newest trace below a run's directory; its process's first device stands for all."""
    file = max(Path(output, DIRECTORY).rglob("*.xplane.pb"), key=os.path.getmtime)
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
    """When the device executed something, in nanoseconds.

    An accelerator has a plane of its own. Operations of a CPU stand in lines of its threads, with the number
    of the execution that they belong to: that begins with the first and ends with the last of them.
    """
    accelerators = sorted(
        (plane for plane in planes if plane.name.startswith(("/device:GPU:", "/device:TPU:"))),
        key=lambda plane: plane.name,
    )
    if accelerators:
        lines = list(accelerators[0].lines)
        # a TPU's, beside lines that span whole steps
        modules = [line for line in lines if line.name == "XLA Modules"]
        return [(e.start_ns, e.end_ns) for line in modules or lines for e in line.events]
    executions: dict[int, tuple[float, float]] = {}
    for event in _events(planes):
        number = next((value for name, value in event.stats if name == "run_id"), None)
        if number is not None:
            begin, end = executions.get(number, (math.inf, 0.0))
            executions[number] = min(begin, event.start_ns), max(end, event.end_ns)
    return executions.values()


def merge(spans: Iterable[Span]) -> list[Span]:
    """Their union, in order and apart."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def plot_timelines(timelines: Mapping[str, Timeline], path: Path, caption: str) -> None:
    """Two lanes each, device and host, from one update's start on."""
    import matplotlib
    from matplotlib.figure import Figure

    colours = dict(zip(HOST, (COLOURS[1], COLOURS[2], "#dddddd", COLOURS[4]), strict=True))
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(15, 1.1 + 1.9 * len(timelines)), layout="constrained")
        for axes, (name, one) in zip(
            figure.subplots(len(timelines), 1, squeeze=False)[:, 0], timelines.items(), strict=True
        ):
            axes.broken_barh(
                _milliseconds(one.device), (1.1, 0.8), color=COLOURS[0], label="the device works"
            )
            for doing, spans in one.host.items():
                axes.broken_barh(
                    _milliseconds(spans), (0, 0.8), color=colours[doing], label=f"the host {HOST[doing]}"
                )
            axes.set(title=name, yticks=[0.4, 1.5], yticklabels=["host", "device"], xlabel="milliseconds")
            axes.set_xlim(0, 1e3 * one.steps[-1])
            axes.grid(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5)
        figure.supxlabel(caption, color=GREY, fontsize=10)
        figure.savefig(path, dpi=100)


def _milliseconds(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """(begin, length) each."""
    return [(1e3 * begin, 1e3 * (end - begin)) for begin, end in spans]
