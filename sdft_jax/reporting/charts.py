"""Pictures of experiments: stages in order, new skills against prior ones, bars and lines with intervals."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.reporting.run_plot import COLOURS, MARKERS, STYLE
from sdft_jax.reporting.statistics import mean_interval

_PADS = {"figure.constrained_layout.w_pad": 0.1, "figure.constrained_layout.h_pad": 0.1}
FIGURE_STYLE: Any = {**STYLE, **_PADS, "font.size": 13, "axes.titlesize": 14, "legend.fontsize": 12.5}
"""Larger than a run's picture: these are shown at half their size."""
GREY, BLACK = "#666666", "#222222"
_DASHES = ("-", "--", ":", "-.")
_SIDES = [(1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0)]
_PLACES = [(far * x, far * y) for far in (8, 20) for x, y in _SIDES]
"""Where a label may sit beside its point, in points, best first."""
_DIAMOND: Any = {
    "linestyle": "",
    "marker": "D",
    "markersize": 9,
    "markerfacecolor": "white",
    "markeredgecolor": BLACK,
    "markeredgewidth": 1.6,
    "zorder": 5,
}


@dataclasses.dataclass(frozen=True)
class TaskCurve:
    """One task under one method over a sequence of stages."""

    method: str
    task: str
    steps: Sequence[float]
    """[N] steps."""
    values: Sequence[Sequence[float]]
    """[seeds][N], see `retention.normalise`."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One trained model, by accuracies in [0, 1]."""

    method: str
    prior: float
    new: float
    label: str = ""
    """Written beside it: its learning rate."""
    prior_half: float | None = None
    """Half-width of its interval; None or nan draws none."""
    new_half: float | None = None
    chosen: bool = False
    """Drawn large, with a black rim."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a group, in the unit of the axis."""

    group: str
    method: str
    value: float
    half: float | None = None
    """Half-width of its interval; None or nan draws none."""
    paper: float | None = None
    """What the paper reports, a hollow diamond."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line, in the units of the axes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float | None] | None = None
    """Half-widths of the intervals at x; None or nan draws none."""
    panel: str = ""
    """Title of the panel that it is drawn in."""


def plot_sequence(
    curves: Sequence[TaskCurve],
    out: str | os.PathLike[str],
    caption: str = "",
    *,
    stages: Sequence[tuple[float, str]] | Mapping[str, Sequence[tuple[float, str]]] = (),
    panels: Literal["method", "task"] = "method",
    y_label: str = "normalised accuracy",
) -> None:
    """Write the paper's Figure 3: every task over the steps of all stages, bands for intervals over seeds.

    Args:
        curves: one for each method and task.
        out: PNG to write.
        caption: what it was measured on.
        stages: (first step, task) of each stage, drawn as vertical lines; or these for each method.
        panels: a panel a method with a line a task, or the other way round.
        y_label: unit of the values.
    """
    lines = [_over_seeds(curve, panels) for curve in curves]
    with _figure(out, len(_titles(lines))) as (figure, axes):
        for axis, title in zip(axes, _titles(lines), strict=True):
            for level in (0, 1):
                axis.axhline(level, color="#aaaaaa", linewidth=1)
            _draw_lines(axis, lines, title)
            axis.set_title(title)
            axis.set(xlabel="step", ylabel=y_label if axis.get_subplotspec().is_first_col() else "")
        _put_below(figure, axes, caption)
        figure.draw_without_rendering()  # lays out
        for axis, title in zip(axes, _titles(lines), strict=True):
            _draw_stages(figure, axis, stages.get(title, ()) if isinstance(stages, Mapping) else stages)


def plot_pareto(
    points: Sequence[Point],
    out: str | os.PathLike[str],
    caption: str = "",
    *,
    base: tuple[float, float] | None = None,
    teacher: float | None = None,
    new: str = "new skill",
    prior: str = "prior skills",
) -> None:
    """Write new skill against prior skills: a line a method, through its learning rates in the order given.

    Args:
        points: accuracies in [0, 1], drawn in percent.
        out: PNG to write.
        caption: what it was measured on.
        base: (prior, new) accuracy of the base model, a star.
        teacher: new-skill accuracy with the demonstration in context, a dashed line.
        new, prior: names of the axes.
    """
    methods = list(dict.fromkeys(point.method for point in points))
    with _figure(out, min(1, len(points)), width=8.2, height=6.4) as (figure, (axis,)):
        for method in methods:
            _draw_frontier(axis, [point for point in points if point.method == method], methods.index(method))
        if base:
            star = {"color": BLACK, "marker": "*", "markersize": 18, "linestyle": "", "zorder": 4}
            axis.plot(100 * base[0], 100 * base[1], label="base model", **star)
        if teacher is not None:
            dashed = {"color": GREY, "linestyle": "--", "linewidth": 1.4}
            axis.axhline(100 * teacher, label="demonstration in context", **dashed)
        axis.margins(0.12)
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        axis.set(xlim=(max(left, -4), min(right, 112)), ylim=(max(low, -4), min(high, 104)))
        axis.set_xticks([tick for tick in axis.get_xticks() if left <= tick <= min(right, 100)])
        axis.set(xlabel=f"{prior}, accuracy (%)", ylabel=f"{new}, accuracy (%)")
        axis.set_title("better ↗", loc="right", color="#777777", fontsize=12, fontweight="normal", pad=14)
        _put_below(figure, [axis], caption)
        colours = [_look(methods.index(point.method))["color"] for point in points]
        _place_labels(figure, axis, points, colours)


def plot_bars(
    bars: Sequence[Bar], out: str | os.PathLike[str], caption: str = "", *, y_label: str = "accuracy (%)"
) -> None:
    """Write grouped bars with intervals, the paper's values as hollow diamonds beside ours.

    Args:
        bars: groups, and methods within them, stand in order of first appearance.
        out: PNG to write.
        caption: what it was measured on.
        y_label: name and unit of the values.

    Raises:
        SdftError: two bars of one group and method.
    """
    groups = list(dict.fromkeys(bar.group for bar in bars))
    methods = list(dict.fromkeys(bar.method for bar in bars))
    if len({(bar.group, bar.method) for bar in bars}) < len(bars):
        raise SdftError("two bars have the same group and method: give their mean, or name them apart.")
    size, width = (
        min(0.4, 0.8 / max(1, len(methods))),
        min(max(7.0, 2 + 0.36 * len(bars) + 0.4 * len(groups)), 13),
    )
    aside = 0.22 * size if any(bar.paper is not None for bar in bars) else 0.0
    with _figure(out, min(1, len(bars)), width=width, height=5.6) as (figure, (axis,)):
        for index, method in enumerate(methods):
            own = [bar for bar in bars if bar.method == method]
            x = [groups.index(bar.group) + (index - (len(methods) - 1) / 2) * size for bar in own]
            look = {"color": _look(index)["color"], "hatch": ("", "//")[index // len(COLOURS) % 2]}
            axis.bar(x, [bar.value for bar in own], 0.92 * size, label=method, edgecolor="white", **look)
            error = {"fmt": "none", "ecolor": BLACK, "capsize": 4, "elinewidth": 1.6}
            halves = [_or_nan(bar.half) for bar in own]
            axis.errorbar([a - aside for a in x], [bar.value for bar in own], halves, **error)
            axis.plot([a + aside for a in x], [_or_nan(bar.paper) for bar in own], **_DIAMOND)
        if aside:
            axis.errorbar([], [], label="reported in the paper", **_DIAMOND)
        axis.axhline(0, color=GREY, linewidth=1)
        room = max(6, int(width * 9.5 / len(groups)))
        axis.set_xticks(range(len(groups)), [textwrap.fill(group, room) for group in groups])
        axis.grid(axis="x", visible=False)
        axis.set_ylabel(y_label)
        _put_below(figure, [axis], caption)


def plot_lines(
    lines: Sequence[Line],
    out: str | os.PathLike[str],
    caption: str = "",
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    references: Mapping[str, float] | None = None,
) -> None:
    """Write lines with bands, a panel for each `Line.panel`.

    Args:
        lines: panels, and lines within them, stand in order of first appearance.
        out: PNG to write.
        caption: what it was measured on.
        x_label, y_label: names and units of the axes.
        log_x: x on a logarithmic axis, marked at the values themselves where they are few.
        references: label -> y of dashed lines across all panels.

    Raises:
        SdftError: `log_x` with an x that is not positive.
    """
    xs = sorted({x for line in lines for x in line.x})
    if log_x and xs and xs[0] <= 0:
        raise SdftError(f"x={xs[0]:g} has no place on a logarithmic axis: give it as a reference line.")
    with _figure(out, len(_titles(lines))) as (figure, axes):
        for axis, title in zip(axes, _titles(lines), strict=True):
            _draw_lines(axis, lines, title)
            for index, (label, value) in enumerate((references or {}).items()):
                style = _DASHES[1 + index % 3]
                axis.axhline(value, color=GREY, linestyle=style, linewidth=1.6, label=label)
            axis.set_title(title)
            axis.set(xlabel=x_label, ylabel=y_label if axis.get_subplotspec().is_first_col() else "")
            if log_x:
                axis.set_xscale("log")
            if log_x and len(xs) <= 10:
                axis.set_xticks(xs, [f"{x:g}" for x in xs])
                axis.set_xticks([], minor=True)
        _put_below(figure, axes, caption)


@contextlib.contextmanager
def _figure(
    out: str | os.PathLike[str], panels: int, width: float = 0.0, height: float = 0.0
) -> Iterator[tuple[Any, Sequence[Any]]]:
    """(figure, its panels in reading order), at most three in a row; written when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, a notebook keeps its own backend

    if not panels:
        raise SdftError(f"{out}: there is nothing to draw; give at least one value.")
    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    size = (width or (8.2, 11.5, 14.0)[columns - 1], height or 0.4 + 4.4 * rows)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axis in axes[panels:]:
            axis.remove()
        yield figure, list(axes[:panels])
        figure.savefig(out, dpi=150)


def _titles(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.panel for line in lines))


def _over_seeds(curve: TaskCurve, panels: Literal["method", "task"]) -> Line:
    means, halves = zip(*(mean_interval(seeds) for seeds in zip(*curve.values, strict=True)), strict=True)
    names = (curve.task, curve.method)
    label, panel = names if panels == "method" else names[::-1]
    return Line(label, curve.steps, means, halves, panel)


def _draw_lines(axis: Any, lines: Sequence[Line], panel: str) -> None:
    """The lines of one panel; a label looks the same in all panels."""
    labels = list(dict.fromkeys(line.label for line in lines))
    for line in lines:
        if line.panel != panel:
            continue
        look = _look(labels.index(line.label))
        every = max(1, len(line.x) // 12)
        axis.plot(line.x, line.y, label=line.label, linewidth=2.2, markersize=7, markevery=every, **look)
        halves = [_or_nan(half) for half in (() if line.half is None else line.half)]
        if not all(map(math.isnan, halves)):
            edges = [(y - half, y + half) for y, half in zip(line.y, halves, strict=True)]
            axis.fill_between(line.x, *zip(*edges, strict=True), color=look["color"], alpha=0.18, linewidth=0)


def _draw_stages(figure: Any, axis: Any, stages: Sequence[tuple[float, str]]) -> None:
    """A vertical line where each stage begins, its name above, in as many rows as keep names apart."""
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 12}
    for start, _ in stages:
        axis.axvline(start, color=GREY, linestyle=":", linewidth=1.6)
    names = [axis.annotate(name, (start, 1), (2, 5), color=GREY, **place) for start, name in stages]
    ends: list[float] = []
    for name in names:
        name.set_in_layout(False)
        box = name.get_window_extent().padded(4)
        beyond = max(0.0, box.x1 - axis.bbox.x1)
        row = next((row for row, end in enumerate(ends) if end <= box.x0 - beyond), len(ends))
        ends[row : row + 1] = [box.x1 - beyond]
        name.set_position((2 - beyond * 72 / figure.dpi, 5 + 16 * row))
    axis.set_title(axis.get_title("left"), pad=8 + 16 * len(ends))


def _draw_frontier(axis: Any, points: Sequence[Point], index: int) -> None:
    """The points of one method, joined in their order, with intervals."""
    look = _look(index)
    names = ("prior", "new", "prior_half", "new_half")
    x, y, x_half, y_half = ([100 * _or_nan(getattr(point, name)) for point in points] for name in names)
    axis.errorbar(x, y, y_half, x_half, fmt="none", ecolor=look["color"], alpha=0.6, capsize=3)
    axis.plot(x, y, label=points[0].method, linewidth=1.8, markersize=8, **look)
    chosen = [(a, b) for a, b, point in zip(x, y, points, strict=True) if point.chosen]
    rim = {**look, "linestyle": "", "markersize": 15, "markeredgecolor": BLACK, "markeredgewidth": 2}
    if chosen:
        axis.plot(*zip(*chosen, strict=True), zorder=4, **rim)


def _place_labels(figure: Any, axis: Any, points: Sequence[Point], colours: Sequence[str]) -> None:
    """Each label beside its point, where it covers the fewest other labels, markers and pieces of lines."""
    figure.draw_without_rendering()  # from here on the layout is settled
    drawn = [line for line in axis.lines if line.get_linestyle() != "None"]
    paths = [line.get_transform().transform_path(line.get_path()) for line in drawn]
    lines = np.concatenate([path.interpolated(20).vertices for path in paths])
    spots = [(100 * point.prior, 100 * point.new) for point in points]
    markers = axis.transData.transform(spots)
    taken: list[Any] = []
    for i, (spot, point, colour) in enumerate(zip(spots, points, colours, strict=True)):
        places = [_write(axis, point.label, spot, place, point.chosen, colour) for place in _PLACES]
        boxes = [place.get_window_extent() for place in places]
        outside = [axis.bbox.count_contains([(box.x0, box.y0), (box.x1, box.y1 - 8)]) < 2 for box in boxes]
        nearest = [np.hypot(*(markers - (box.min + box.max) / 2).T).argmin() for box in boxes]
        costs = [
            rank
            + 1000 * box.count_overlaps(taken)
            + 200 * outside[rank]
            + 40 * bool(nearest[rank] != i)
            + 30 * _inside(box.padded(15), np.delete(markers, i, axis=0))
            + _inside(box, lines)
            for rank, box in enumerate(boxes)
        ]
        best = int(np.argmin(costs))
        taken.append(boxes[best].padded(2))
        for place in (*places[:best], *places[best + 1 :]):
            place.remove()


def _write(
    axis: Any, label: str, spot: tuple[float, float], place: tuple[float, float], far: bool, colour: str
) -> Any:
    """The label at an offset in points from its spot, further from a large marker, darker than its line."""
    from matplotlib.colors import to_rgb

    x, y = (round(offset * (1.5 if far else 1)) for offset in place)
    aligned = {
        "ha": ("center", "left", "right")[(x > 0) - (x < 0)],
        "va": ("center", "bottom", "top")[(y > 0) - (y < 0)],
    }
    look = {"fontsize": 12, "color": [0.65 * part for part in to_rgb(colour)], "zorder": 6}
    text = axis.annotate(label, spot, (x, y), textcoords="offset points", **aligned, **look)
    text.set_in_layout(False)
    return text


def _inside(box: Any, points: np.ndarray) -> int:
    """How many of [N, 2] points lie in the box."""
    return int(((points > box.min) & (points < box.max)).all(axis=1).sum())


def _put_below(figure: Any, axes: Sequence[Any], caption: str) -> None:
    """One legend of all panels and the caption, in room added below them."""
    width, height = figure.get_size_inches()
    found = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes]
    entries = {label: handle for pairs in found for handle, label in pairs}
    room = 0.105 * max(map(len, entries), default=0) + 0.7  # inches of an entry
    columns = max(1, min(len(entries), int(width / room)))
    rowwise = [label for column in range(columns) for label in list(entries)[column::columns]]
    legend = figure.legend([entries[label] for label in rowwise], rowwise, loc="lower center", ncols=columns)
    text = figure.text(0.5, 0, textwrap.fill(caption, int(width * 11)), color="#555555", fontsize=11)
    text.set(ha="center", va="bottom", in_layout=False)
    legend.set_in_layout(False)
    low = 0.08 + (text.get_window_extent().height / figure.dpi if caption else 0)
    high = low + legend.get_window_extent().height / figure.dpi
    figure.set_size_inches(width, height + high)
    text.set_y(0.08 / (height + high))
    legend.set_bbox_to_anchor((0.5, low / (height + high)), figure.transFigure)
    figure.get_layout_engine().set(rect=(0, high / (height + high), 1, height / (height + high)))


def _look(index: int) -> dict[str, Any]:
    """Colour and marker together, then another dash: 24 lines differ."""
    style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
    return {**style, "linestyle": _DASHES[index // len(COLOURS) % len(_DASHES)]}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
