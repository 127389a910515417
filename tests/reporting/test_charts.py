"""Figures contain the expected lines, bars, markers, labels and legends, and nothing overlaps."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import (
    Axes,
    Bar,
    Line,
    Point,
    TaskCurve,
    plot_bars,
    plot_lines,
    plot_pareto,
    plot_sequence,
)
from sdft_jax.reporting.statistics import mean_interval

TASKS, METHODS = ["tool", "science", "medical"], ["sdft", "sft"]
CURVES = [
    TaskCurve(method, task, range(0, 90, 10), np.linspace([0.0, 0.1, 0.0], [1.0, 0.7, 0.8], 9).T + 0.1 * i)
    for i, (method, task) in enumerate(itertools.product(METHODS, TASKS))
]
STAGES = [(0, "tool"), (30, "science"), (60, "medical")]
POINTS = [
    Point(method, 0.65 - 0.1 * j * i, 0.3 + 0.1 * j, rate, 0.01, 0.02, chosen=j == 1)
    for i, method in enumerate(METHODS)
    for j, rate in enumerate(["5e-6", "1e-5", "5e-5"])
]
CAPTION = "Where and how this was measured. " * 5


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Run a plot and return its figure, with the same layout as in the file."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs))
    )

    def run(plot, data, **kwargs):
        out = tmp_path / "out.png"
        plot(data, out, CAPTION, **kwargs)
        assert out.read_bytes().startswith(b"\x89PNG")
        figures[-1].draw_without_rendering()  # the file has another resolution
        return figures[-1]

    return run


def entries(legend):
    return [text.get_text() for text in legend.get_texts()]


def main_legend(figure):
    (legend,) = [legend for legend in figure.legends if not legend.get_title().get_text()]
    return legend


def legend(figure):
    """The entries of the main legend, in order."""
    return entries(main_legend(figure))


def named(axis):
    """The lines in the legend, by label."""
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


def stage_labels(axis):
    """The names of the stages above a panel."""
    (top,) = axis.child_axes
    return top.get_xticklabels()


@pytest.mark.parametrize(
    ("panels", "titles", "lines"), [("method", METHODS, TASKS), ("task", TASKS, METHODS)]
)
def test_sequence_has_a_panel_per_title_and_a_line_per_label(written, panels, titles, lines):
    figure = written(plot_sequence, CURVES, stages=STAGES, panels=panels)
    assert [axis.get_title("left") for axis in figure.axes] == titles
    assert legend(figure) == lines
    for axis in figure.axes:
        assert list(named(axis)) == lines
        assert [label.get_text() for label in stage_labels(axis)] == TASKS
        assert [label.get_position()[0] for label in stage_labels(axis)] == [0, 30, 60]
        starts = [line.get_xdata() for line in axis.lines if line.get_linestyle() == ":"]
        np.testing.assert_array_equal(starts, [[0, 0], [30, 30], [60, 60]])


def test_sequence_draws_mean_and_interval_over_seeds(written):
    axis = written(plot_sequence, CURVES[:1]).axes[0]
    for step, seeds in zip(CURVES[0].steps, np.transpose(CURVES[0].values), strict=True):
        mean, half = mean_interval(seeds)
        assert [step, mean] in named(axis)["tool"].get_xydata().tolist()
        edges = axis.collections[0].get_paths()[0].vertices
        ends = edges[edges[:, 0] == step][:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((mean - half, mean + half))


def test_one_seed_has_no_band_and_stages_may_differ_between_panels(written):
    single = [TaskCurve(c.method, c.task, c.steps, c.values[:1]) for c in CURVES]
    figure = written(plot_sequence, single, stages={"sdft": STAGES, "sft": STAGES[:2]})
    assert [len(axis.collections) for axis in figure.axes] == [0, 0]
    assert [len(stage_labels(axis)) for axis in figure.axes] == [3, 2]


def test_long_names_of_stages_do_not_overlap(written):
    stages = [(20 * i, f"a rather long name of stage {i}") for i in range(5)]
    figure = written(plot_sequence, CURVES[:1], stages=stages)
    (axis,) = figure.axes
    (title,) = axis.findobj(lambda artist: isinstance(artist, Text) and artist.get_text() == "sdft")
    labels = stage_labels(axis)
    boxes = [label.get_window_extent() for label in labels]
    # The labels are parallel: compare the distance between their baselines with the height of a line.
    angle = np.radians(labels[0].get_rotation())
    distances = np.diff([box.x0 for box in boxes]) * np.sin(angle)
    line_height = 1.2 * labels[0].get_fontsize() * figure.dpi / 72
    assert {label.get_rotation() for label in labels} == {labels[0].get_rotation()}
    assert min(distances) > line_height
    assert min(box.y0 for box in boxes) > axis.bbox.y1
    assert max(box.y1 for box in boxes) <= title.get_window_extent().y0
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_pareto_has_a_line_per_method_and_a_marker_per_learning_rate(written):
    figure = written(plot_pareto, POINTS, base=Point("base model", prior=0.65, new=0.3), teacher=0.7)
    (axis,) = figure.axes
    lines = named(axis)
    assert legend(figure) == [*METHODS, "base model", "demonstration in context"]
    np.testing.assert_allclose(lines["sft"].get_xydata(), [[65, 30], [55, 40], [45, 50]])
    np.testing.assert_allclose(lines["base model"].get_xydata(), [[65, 30]])
    np.testing.assert_allclose(lines["demonstration in context"].get_ydata(), [70, 70])
    assert lines["demonstration in context"].get_linestyle() == "--"
    (rates,) = [legend for legend in figure.legends if legend.get_title().get_text() == "learning rate"]
    assert entries(rates) == ["5e-6", "1e-5", "5e-5"]
    box = rates.get_window_extent()
    assert axis.get_tightbbox().x1 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y1 <= main_legend(figure).get_window_extent().y0
    shapes = [handle.get_marker() for handle in rates.legend_handles]
    assert len(set(shapes)) == 3
    single = [line for line in axis.lines if line.get_label().startswith("_") and len(line.get_xdata()) == 1]
    assert [line.get_marker() for line in single] == shapes * 2
    np.testing.assert_allclose(
        [line.get_xydata()[0] for line in single], [[100 * point.prior, 100 * point.new] for point in POINTS]
    )
    large = [line for line in axis.lines if line.get_markersize() == 15]
    np.testing.assert_allclose([line.get_xydata()[0] for line in large], [[65, 40], [55, 40]])
    assert axis.get_xlabel() == "prior skills, accuracy (%)"
    assert axis.get_ylabel() == "new skill, accuracy (%)"


def test_pareto_without_base_intervals_and_learning_rates(written):
    figure = written(plot_pareto, [Point("sdft", 0.6, 1.0)])
    assert legend(figure) == ["sdft"]
    assert len(figure.legends) == 1
    assert figure.axes[0].get_ylim()[1] <= 104


def test_bars_are_grouped_and_have_diamonds_for_the_values_of_the_paper(written):
    bars = [
        Bar(group, method, 10.0 * i + j, 1.5 if j else None, paper=50.0 if group == "prior" and j else None)
        for i, group in enumerate(["new", "prior"])
        for j, method in enumerate(["base", *METHODS])
    ]
    figure = written(plot_bars, bars)
    (axis,) = figure.axes
    assert legend(figure) == ["base", "sdft", "sft", "reported in the paper"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["new", "prior"]
    for j, (container, group) in enumerate(itertools.product(range(3), range(2))):
        bar = axis.patches[j]
        assert bar.get_height() == 10.0 * group + container
        assert group - 0.5 < bar.get_x() < bar.get_x() + bar.get_width() < group + 0.5
    diamonds = np.concatenate([line.get_xydata() for line in axis.lines if line.get_marker() == "D"])
    assert np.isfinite(diamonds).all(axis=1).sum() == 2
    assert set(diamonds[np.isfinite(diamonds[:, 1])][:, 1]) == {50.0}
    assert "reported in the paper" not in legend(written(plot_bars, [Bar("new", "sdft", 1.0)]))


def test_lines_with_bands_references_and_a_logarithmic_axis(written):
    ks = [1, 2, 4, 8]
    lines = [
        Line("sdft", ks, [0.5, 0.6, 0.7, 0.8], np.array([0.1] * 4)),
        Line("sft", ks, [0.4, 0.5, 0.6, 0.7], [None] * 4),
    ]
    axes = Axes("k", "pass@k", log_x=True)
    figure = written(plot_lines, lines, axes=axes, references={"base": 0.3})
    (axis,) = figure.axes
    assert legend(figure) == ["sdft", "sft", "base"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8"]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == ("k", "pass@k", "log")
    np.testing.assert_allclose(named(axis)["sft"].get_xydata(), np.stack([ks, lines[1].y], axis=1))
    assert len(axis.collections) == 1


def test_a_label_has_the_same_look_in_all_panels_and_looks_differ(written):
    lines = [Line(f"line {i}", [0, 1], [i, i], panel=f"panel {p}") for p in range(2) for i in range(p, 14)]
    figure = written(plot_lines, lines, axes=Axes("x", "y"))
    looks = {
        (label, line.get_color(), line.get_marker(), line.get_linestyle())
        for axis in figure.axes
        for label, line in named(axis).items()
    }
    assert len(looks) == 14 == len({look[1:] for look in looks})
    assert sorted(legend(figure)) == sorted({line.label for line in lines})


def test_marks_are_shapes_and_labels_colors(written):
    pairs = list(itertools.product(METHODS, TASKS))
    lines = [Line(method, [0, i], [1, i], mark=task) for i, (method, task) in enumerate(pairs)]
    figure = written(plot_lines, lines, axes=Axes("x", "y"))
    (axis,) = figure.axes
    assert legend(figure) == [*METHODS, *TASKS]
    drawn, ends = ([line for line in axis.lines if len(line.get_xdata()) == n] for n in (2, 1))
    assert [line.get_xydata().tolist() for line in ends] == [[[i, i]] for i in range(len(pairs))]
    assert [line.get_marker() for line in ends] == [line.get_marker() for line in drawn]
    for line, (method, task), wanted in zip(drawn, pairs, lines, strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.stack([wanted.x, wanted.y], axis=1))
        assert line.get_color() == named(axis)[method].get_color()
        assert line.get_marker() == named(axis)[task].get_marker()
    assert len({line.get_color() for line in drawn}) == len(METHODS)
    assert len({line.get_marker() for line in drawn}) == len(TASKS)


@pytest.mark.parametrize("panels", [1, 5])
def test_nothing_overlaps_or_is_clipped(written, panels):
    lines = [Line(f"line number {i}", [0, 1], [i, i], panel=f"p{p}") for p in range(panels) for i in range(9)]
    figure = written(plot_lines, lines, axes=Axes("x", "y"))
    caption, legend_box = figure.texts[0].get_window_extent(), main_legend(figure).get_window_extent()
    lowest = min(axis.get_tightbbox().y0 for axis in figure.axes)
    highest = max(axis.get_tightbbox().y1 for axis in figure.axes)
    assert 0 <= caption.y0 < caption.y1 <= lowest
    assert highest <= legend_box.y0 < legend_box.y1
    for box in (caption, legend_box, *(axis.get_tightbbox() for axis in figure.axes)):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: plot_sequence([], out), "nothing to draw"),
        (lambda out: plot_pareto([], out), "nothing to draw"),
        (lambda out: plot_bars([], out), "nothing to draw"),
        (lambda out: plot_lines([], out, axes=Axes("", "")), "nothing to draw"),
        (lambda out: plot_bars([Bar("a", "b", 1), Bar("a", "b", 2)], out), "same group and method"),
        (
            lambda out: plot_lines([Line("a", [0, 1], [1, 1])], out, axes=Axes("", "", log_x=True)),
            "x=0 cannot be drawn",
        ),
    ],
)
def test_invalid_arguments_raise(call, message, tmp_path):
    with pytest.raises(SdftError, match=message):
        call(tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
