"""Pictures are written, and hold the lines, bars, marks and words that they should."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import (
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
    """Runs a plot and gives its figure, laid out as in the file."""
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


def legend(figure):
    """Its entries in reading order."""
    boxes = [(text.get_window_extent(), text.get_text()) for text in figure.legends[0].get_texts()]
    return [text for box, text in sorted(boxes, key=lambda pair: (-round(pair[0].y0, -1), pair[0].x0))]


def named(axis):
    """The lines that the legend knows, by their labels."""
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


def words(axis):
    return [text.get_text() for text in axis.texts]


def overlapping(texts):
    boxes = [text.get_window_extent() for text in texts]
    return [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize(
    ("panels", "titles", "lines"), [("method", METHODS, TASKS), ("task", TASKS, METHODS)]
)
def test_sequence_has_a_panel_each_and_a_line_each(written, panels, titles, lines):
    figure = written(plot_sequence, CURVES, stages=STAGES, panels=panels)
    assert [axis.get_title("left") for axis in figure.axes] == titles
    assert legend(figure) == lines
    for axis in figure.axes:
        assert list(named(axis)) == lines
        assert words(axis) == TASKS
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


def test_one_seed_has_no_band_and_methods_their_own_stages(written):
    single = [TaskCurve(c.method, c.task, c.steps, c.values[:1]) for c in CURVES]
    figure = written(plot_sequence, single, stages={"sdft": STAGES, "sft": STAGES[:2]})
    assert [len(axis.collections) for axis in figure.axes] == [0, 0]
    assert [len(words(axis)) for axis in figure.axes] == [3, 2]


def test_long_names_of_stages_do_not_overlap(written):
    stages = [(20 * i, f"a rather long name of stage {i}") for i in range(5)]
    axis = written(plot_sequence, CURVES[:1], stages=stages).axes[0]
    title = axis.get_tightbbox().y1 - axis.title.get_fontsize()
    assert not overlapping(axis.texts)
    assert max(name.get_window_extent().y1 for name in axis.texts) < title
    assert max(name.get_window_extent().x1 for name in axis.texts) < axis.bbox.x1


def test_pareto_has_a_line_a_method_and_a_label_a_rate(written):
    figure = written(plot_pareto, POINTS, base=(0.65, 0.3), teacher=0.7, new="science")
    (axis,) = figure.axes
    lines = named(axis)
    assert legend(figure) == [*METHODS, "base model", "demonstration in context"]
    np.testing.assert_allclose(lines["sft"].get_xydata(), [[65, 30], [55, 40], [45, 50]])
    np.testing.assert_allclose(lines["base model"].get_xydata(), [[65, 30]])
    np.testing.assert_allclose(lines["demonstration in context"].get_ydata(), [70, 70])
    assert lines["demonstration in context"].get_linestyle() == "--"
    assert sorted(words(axis)) == sorted(point.label for point in POINTS)
    assert not overlapping(axis.texts)
    large = [line for line in axis.lines if line.get_markersize() == 15]
    np.testing.assert_allclose([line.get_xydata()[0] for line in large], [[65, 40], [55, 40]])
    assert axis.get_ylabel() == "science, accuracy (%)"


def test_pareto_without_base_intervals_and_labels(written):
    figure = written(plot_pareto, [Point("sdft", 0.6, 1.0)])
    assert legend(figure) == ["sdft"]
    assert figure.axes[0].get_ylim()[1] <= 104


def test_bars_stand_in_groups_with_the_papers_values_beside_them(written):
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
    options = {"x_label": "k", "y_label": "pass@k", "references": {"base": 0.3}}
    figure = written(plot_lines, lines, log_x=True, **options)
    (axis,) = figure.axes
    assert legend(figure) == ["sdft", "sft", "base"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8"]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == ("k", "pass@k", "log")
    np.testing.assert_allclose(named(axis)["sft"].get_xydata(), np.stack([ks, lines[1].y], axis=1))
    assert len(axis.collections) == 1


def test_a_label_looks_the_same_in_every_panel_and_no_two_look_alike(written):
    lines = [Line(f"line {i}", [0, 1], [i, i], panel=f"panel {p}") for p in range(2) for i in range(p, 14)]
    figure = written(plot_lines, lines, x_label="x", y_label="y")
    looks = {
        (label, line.get_color(), line.get_marker(), line.get_linestyle())
        for axis in figure.axes
        for label, line in named(axis).items()
    }
    assert len(looks) == 14 == len({look[1:] for look in looks})
    assert sorted(legend(figure)) == sorted({line.label for line in lines})


@pytest.mark.parametrize("panels", [1, 5])
def test_nothing_overlaps_or_is_cut_off(written, panels):
    lines = [Line(f"line number {i}", [0, 1], [i, i], panel=f"p{p}") for p in range(panels) for i in range(9)]
    figure = written(plot_lines, lines, x_label="x", y_label="y")
    caption, outside = figure.texts[0].get_window_extent(), figure.legends[0].get_window_extent()
    lowest = min(axis.get_tightbbox().y0 for axis in figure.axes)
    assert 0 <= caption.y0 < caption.y1 <= outside.y0 < outside.y1 <= lowest
    for box in (caption, outside, *(axis.get_tightbbox() for axis in figure.axes)):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda out: plot_sequence([], out), "nothing to draw"),
        (lambda out: plot_pareto([], out), "nothing to draw"),
        (lambda out: plot_bars([], out), "nothing to draw"),
        (lambda out: plot_lines([], out, x_label="", y_label=""), "nothing to draw"),
        (lambda out: plot_bars([Bar("a", "b", 1), Bar("a", "b", 2)], out), "same group and method"),
        (
            lambda out: plot_lines([Line("a", [0, 1], [1, 1])], out, x_label="", y_label="", log_x=True),
            "x=0 has no place",
        ),
    ],
)
def test_mistakes_are_named(call, says, tmp_path):
    with pytest.raises(SdftError, match=says):
        call(tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
