"""Figures of experiments: curves over stages, new against prior skills, bars, and lines with bands."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from sdft_jax.errors import SdftError
from sdft_jax.reporting.statistics import mean_interval
from sdft_jax.reporting.style import BLACK, COLOURS, FIGURE_STYLE, GREY, MARKERS, save_figure

_DASHES = ("-", "--", ":", "-.")
_DIAMOND: Any = {
    "linestyle": "",
    "marker": "D",
    "markersize": 9,
    "markerfacecolor": "white",
    "markeredgecolor": BLACK,
    "markeredgewidth": 1.6,
    "zorder": 5,
}
_END: Any = {
    "linestyle": "",
    "markersize": 12,
    "markeredgecolor": BLACK,
    "markeredgewidth": 1.6,
    "zorder": 4,
}


@dataclasses.dataclass(frozen=True)
class TaskCurve:
    """The accuracy of one method on one task over all stages."""

    method: str
    task: str
    steps: Sequence[float]
    """Training steps, [N]."""
    values: Sequence[Sequence[float]]
    """Normalized accuracies, [seeds][N]; see `sdft_jax.continual.forgetting.normalize`."""


@dataclasses.dataclass(frozen=True)
class Point:
    """The accuracies of one model, in [0, 1]."""

    method: str
    prior: float
    """Accuracy on prior skills."""
    new: float
    """Accuracy on the new skill."""
    label: str = ""
    """Learning rate, shown by the shape of the marker; shapes repeat after eight learning rates."""
    prior_half: float | None = None
    """Half-width of the interval around `prior`; None or NaN draws no interval."""
    new_half: float | None = None
    """Half-width of the interval around `new`; None or NaN draws no interval."""
    chosen: bool = False
    """Draw a large marker with a black edge."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a group, in the unit of the y axis."""

    group: str
    method: str
    value: float
    half: float | None = None
    """Half-width of the interval; None or NaN draws no interval."""
    paper: float | None = None
    """The value that the paper reports, drawn as a hollow diamond."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line, in the units of the axes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float | None] | None = None
    """Half-widths of the intervals at `x`; None or NaN draws no interval."""
    panel: str = ""
    """Title of the panel that contains the line."""
    mark: str = ""
    """A second label, shown by the shape of the markers; the color then shows `label`, and the last point has
    a black edge."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The labels and the scale of the x and y axes."""

    x_label: str
    y_label: str
    log_x: bool = False
    """Use a logarithmic x axis, with ticks at the values of the lines if there are at most ten."""


def plot_sequence(
    curves: Sequence[TaskCurve],
    out: str | os.PathLike[str],
    caption: str = "",
    *,
    stages: Sequence[tuple[float, str]] | Mapping[str, Sequence[tuple[float, str]]] = (),
    panels: Literal["method", "task"] = "method",
    y_label: str = "normalized accuracy",
) -> None:
    """Plot each task over the steps of all stages, with intervals over seeds, as in Figure 3 of the paper.

    Args:
        curves: one curve for each method and task.
        out: PNG file to write.
        caption: text below the panels, such as the hardware.
        stages: (first step, name) of each stage, drawn as vertical lines; or one such list per panel title.
        panels: "method" draws one panel per method and one line per task; "task" does the reverse.
        y_label: name and unit of the values.

    Raises:
        SdftError: there are no curves.
    """
    lines = [_over_seeds(curve, panels) for curve in curves]
    titles = _unique(line.panel for line in lines)
    with _figure(out, caption, len(titles)) as axes:
        for axis, title in zip(axes, titles, strict=True):
            for level in (0, 1):
                axis.axhline(level, color="#aaaaaa", linewidth=1)
            _draw_panel(axis, lines, title, Axes("step", y_label))
            _draw_stages(axis, stages.get(title, ()) if isinstance(stages, Mapping) else stages)


def plot_pareto(
    points: Sequence[Point],
    out: str | os.PathLike[str],
    caption: str = "",
    *,
    base: Point | None = None,
    teacher: float | None = None,
) -> None:
    """Plot accuracy on the new skill against accuracy on prior skills, with one line per method.

    The line of a method joins its points in the order given. The shape of a marker shows the learning rate.

    Args:
        points: accuracies in [0, 1], plotted in percent.
        out: PNG file to write.
        caption: text below the panels, such as the hardware.
        base: the base model, drawn as a star; its `method` is its label in the legend.
        teacher: accuracy on the new skill with the demonstration in context, drawn as a dashed line.

    Raises:
        SdftError: there are no points.
    """
    methods = _unique(point.method for point in points)
    shapes = dict(zip(_unique(point.label for point in points), itertools.cycle(MARKERS), strict=False))
    with _figure(out, caption, min(1, len(points)), (8.2, 6.4)) as (axis,):
        for index, method in enumerate(methods):
            _draw_frontier(axis, [point for point in points if point.method == method], index, shapes)
        if base:
            star = {"color": BLACK, "marker": "*", "markersize": 18, "linestyle": "", "zorder": 4}
            axis.plot(100 * base.prior, 100 * base.new, label=base.method, **star)
        if teacher is not None:
            dashed = {"color": GREY, "linestyle": "--", "linewidth": 1.4}
            axis.axhline(100 * teacher, label="demonstration in context", **dashed)
        axis.margins(0.06)
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        axis.set(xlim=(max(left, -4), min(right, 104)), ylim=(max(low, -4), min(high, 104)))
        axis.set(xlabel="prior skills, accuracy (%)", ylabel="new skill, accuracy (%)")
        axis.set_title("better ↗", loc="right", color="#777777", fontsize=12, fontweight="normal")
        _add_learning_rates(axis.figure, {label: shape for label, shape in shapes.items() if label})


def plot_bars(
    bars: Sequence[Bar], out: str | os.PathLike[str], caption: str = "", *, y_label: str = "accuracy (%)"
) -> None:
    """Plot grouped bars with intervals, and the values of the paper as hollow diamonds.

    Args:
        bars: groups, and the methods in each group, are drawn in order of first appearance.
        out: PNG file to write.
        caption: text below the panels, such as the hardware.
        y_label: name and unit of the values.

    Raises:
        SdftError: there are no bars, or two bars have the same group and method.
    """
    groups = _unique(bar.group for bar in bars)
    methods = _unique(bar.method for bar in bars)
    if len({(bar.group, bar.method) for bar in bars}) < len(bars):
        raise SdftError(
            f"{out}: two bars have the same group and method. Average them, or give them different names."
        )
    bar_width = min(0.4, 0.8 / max(1, len(methods)))
    figure_width = min(max(7.0, 2 + 0.36 * len(bars) + 0.4 * len(groups)), 13)
    # With values of the paper, the interval is drawn left of the center of a bar and the diamond right of it.
    shift = 0.22 * bar_width if any(bar.paper is not None for bar in bars) else 0.0
    with _figure(out, caption, min(1, len(bars)), (figure_width, 5.6)) as (axis,):
        for index, method in enumerate(methods):
            own = [bar for bar in bars if bar.method == method]
            x = [groups.index(bar.group) + (index - (len(methods) - 1) / 2) * bar_width for bar in own]
            values = [bar.value for bar in own]
            look = {"color": _look(index)["color"], "hatch": ("", "//")[index // len(COLOURS) % 2]}
            axis.bar(x, values, 0.92 * bar_width, label=method, edgecolor="white", **look)
            interval = {"fmt": "none", "ecolor": BLACK, "capsize": 4, "elinewidth": 1.6}
            axis.errorbar([a - shift for a in x], values, [_or_nan(bar.half) for bar in own], **interval)
            axis.plot([a + shift for a in x], [_or_nan(bar.paper) for bar in own], **_DIAMOND)
        if shift:
            # The legend lists lines before bars, and error bars after them.
            axis.errorbar([], [], label="reported in the paper", **_DIAMOND)
        axis.axhline(0, color=GREY, linewidth=1)
        characters = max(6, int(figure_width * 9.5 / len(groups)))
        axis.set_xticks(range(len(groups)), [textwrap.fill(group, characters) for group in groups])
        axis.grid(axis="x", visible=False)
        axis.set_ylabel(y_label)


def plot_lines(
    lines: Sequence[Line],
    out: str | os.PathLike[str],
    caption: str = "",
    *,
    axes: Axes,
    references: Mapping[str, float] | None = None,
) -> None:
    """Plot lines with their intervals as bands, with one panel for each `Line.panel`.

    Args:
        lines: panels, and the lines in each panel, are drawn in order of first appearance.
        out: PNG file to write.
        caption: text below the panels, such as the hardware.
        axes: labels and scale.
        references: label -> y of horizontal lines that are drawn in all panels.

    Raises:
        SdftError: there are no lines, or the x axis is logarithmic and an x is not positive.
    """
    xs = sorted({x for line in lines for x in line.x})
    if axes.log_x and xs and xs[0] <= 0:
        raise SdftError(
            f"{out}: x={xs[0]:g} cannot be drawn on a logarithmic axis. Pass the value in `references`."
        )
    titles = _unique(line.panel for line in lines)
    with _figure(out, caption, len(titles)) as panels:
        for axis, title in zip(panels, titles, strict=True):
            _draw_panel(axis, lines, title, axes)
            for index, (label, value) in enumerate((references or {}).items()):
                style = _DASHES[1 + index % 3]
                axis.axhline(value, color=GREY, linestyle=style, linewidth=1.6, label=label)
            if axes.log_x:
                axis.set_xscale("log")
            if axes.log_x and len(xs) <= 10:
                axis.set_xticks(xs, [f"{x:g}" for x in xs])
                axis.set_xticks([], minor=True)


@contextlib.contextmanager
def _figure(
    out: str | os.PathLike[str], caption: str, panels: int, size: tuple[float, float] | None = None
) -> Iterator[list[Any]]:
    """Yield the panels of a new figure in reading order, then add the legend and caption and write the file.

    `size` is (width, height) of the panels in inches; the legend and the caption are added to the height.
    """
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would replace the backend of a notebook

    if not panels:
        raise SdftError(f"{out}: there is nothing to draw. Pass at least one value.")
    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(
            figsize=size or ((8.2, 11.5, 14.0)[columns - 1], 0.4 + 4.4 * rows), layout="constrained"
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axis in axes[panels:]:
            axis.remove()
        yield list(axes[:panels])
        _add_legend(figure)
        _add_caption(figure, caption)
        save_figure(figure, out)


def _add_legend(figure: Any) -> None:
    """Add one legend for all panels above them, and increase the height of the figure for it."""
    pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    handles = {label: handle for panel in pairs for handle, label in panel}
    width, widths = figure.get_figwidth(), [0.105 * len(label) + 0.7 for label in handles]  # inches
    columns = max(1, len(handles) if sum(widths) <= width else int(width / max(widths)))
    figure.legend([*handles.values()], [*handles], loc="outside upper center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.27 * math.ceil(len(handles) / columns))


def _add_learning_rates(figure: Any, shapes: Mapping[str, str]) -> None:
    """Add a second legend, which maps the shape of a marker to its learning rate."""
    from matplotlib.lines import Line2D

    if shapes:
        marks = [Line2D([], [], color=GREY, marker=shape, linestyle="") for shape in shapes.values()]
        figure.legend(marks, [*shapes], title="learning rate", loc="outside right center")


def _add_caption(figure: Any, caption: str) -> None:
    """Add the wrapped caption below the panels, and increase the height of the figure for it."""
    lines = textwrap.wrap(caption, int(figure.get_figwidth() * 11))
    figure.supxlabel("\n".join(lines), color="#555555", fontsize=11)
    figure.set_figheight(figure.get_figheight() + 0.2 * len(lines))


def _unique(names: Iterable[str]) -> list[str]:
    """Return the names without repetitions, in order of first appearance."""
    return list(dict.fromkeys(names))


def _over_seeds(curve: TaskCurve, panels: Literal["method", "task"]) -> Line:
    means, halves = zip(*(mean_interval(seeds) for seeds in zip(*curve.values, strict=True)), strict=True)
    names = (curve.task, curve.method)
    label, panel = names if panels == "method" else names[::-1]
    return Line(label, curve.steps, means, halves, panel)


def _draw_panel(axis: Any, lines: Sequence[Line], title: str, axes: Axes) -> None:
    """Draw one panel with its title and axis labels; a line label has the same look in all panels."""
    labels, marks = _unique(line.label for line in lines), _unique(line.mark for line in lines if line.mark)
    _explain_marks(axis, labels, marks)
    for line in lines:
        if line.panel != title:
            continue
        look = _look(labels.index(line.label))
        if line.mark:
            look |= {"marker": MARKERS[marks.index(line.mark) % len(MARKERS)]}
            axis.plot(line.x[-1], line.y[-1], **look | _END)
        every = max(1, len(line.x) // 12)
        label = "" if line.mark else line.label
        axis.plot(line.x, line.y, label=label, linewidth=2.2, markersize=7, markevery=every, **look)
        halves = [_or_nan(half) for half in (() if line.half is None else line.half)]
        if not all(map(math.isnan, halves)):
            edges = [(y - half, y + half) for y, half in zip(line.y, halves, strict=True)]
            axis.fill_between(line.x, *zip(*edges, strict=True), color=look["color"], alpha=0.18, linewidth=0)
    axis.set(title=title, xlabel=axes.x_label)
    axis.set_ylabel(axes.y_label if axis.get_subplotspec().is_first_col() else "")


def _explain_marks(axis: Any, labels: Sequence[str], marks: Sequence[str]) -> None:
    """Add the entries of the legend if lines have marks: a color for each label, a shape for each mark."""
    for index, label in enumerate(labels if marks else ()):
        axis.plot([], [], label=label, linewidth=2.2, color=_look(index)["color"])
    for mark, shape in zip(marks, itertools.cycle(MARKERS), strict=False):
        axis.plot([], [], label=mark, linestyle="", markersize=7, color=GREY, marker=shape)


def _draw_stages(axis: Any, stages: Sequence[tuple[float, str]]) -> None:
    """Draw a vertical line at the first step of each stage, with the name of the stage above the panel."""
    starts = [start for start, _ in stages]
    for start in starts:
        axis.axvline(start, color=GREY, linestyle=":", linewidth=1.6)
    top = axis.secondary_xaxis("top")
    top.set_xticks(starts, [name for _, name in stages], rotation=30, ha="left", rotation_mode="anchor")
    top.tick_params(length=0, labelcolor=GREY, labelsize=12)
    top.spines["top"].set_visible(False)


def _draw_frontier(axis: Any, points: Sequence[Point], index: int, shapes: Mapping[str, str]) -> None:
    """Draw the points of one method with their intervals, joined in order."""
    look = {"color": _look(index)["color"], "linestyle": _DASHES[index % len(_DASHES)]}
    names = ("prior", "new", "prior_half", "new_half")
    x, y, x_half, y_half = ([100 * _or_nan(getattr(point, name)) for point in points] for name in names)
    axis.errorbar(x, y, y_half, x_half, fmt="none", ecolor=look["color"], alpha=0.6, capsize=3)
    axis.plot(x, y, label=points[0].method, linewidth=1.8, **look)
    edge = {"markersize": 15, "markeredgecolor": BLACK, "markeredgewidth": 2, "zorder": 4}
    for a, b, point in zip(x, y, points, strict=True):
        size = edge if point.chosen else {"markersize": 8}
        axis.plot(a, b, color=look["color"], marker=shapes[point.label], linestyle="", **size)


def _look(index: int) -> dict[str, Any]:
    """Return the color, marker and dashes of a line; the first 24 lines have different looks."""
    style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
    return {**style, "linestyle": _DASHES[index // len(COLOURS) % len(_DASHES)]}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
