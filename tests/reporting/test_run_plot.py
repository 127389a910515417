"""The plot of a run is a PNG file with the accuracies of all methods and references."""

import json

import pytest
from matplotlib.figure import Figure

from sdft_jax.reporting.run_plot import plot_run

ROWS = [
    {"method": "base", "step": 0, "new": 0.1, "old": 0.7},
    {"method": "teacher", "step": 0, "new": 0.8},
    {"method": "SDFT", "step": 0, "new": 0.1, "old": 0.7},
    {"method": "SDFT", "step": 30, "new": 0.6, "old": None},
    {"method": "SFT", "step": 30, "new": 0.5, "old": 0.4},
]


def write_metrics(path):
    rows = ({"step": step, "loss": 1 / step, "tokens": step * 1.5} for step in range(1, 30))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("with_rows", [True, False])
def test_plot_is_written_as_png(tmp_path, with_rows):
    write_metrics(tmp_path / "metrics.jsonl")
    plot_run(tmp_path / "metrics.jsonl", ROWS if with_rows else [], tmp_path / "run.png", "measured here")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_references_are_horizontal_lines_in_the_legend(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    write_metrics(tmp_path / "metrics.jsonl")
    plot_run(tmp_path / "metrics.jsonl", ROWS, tmp_path / "run.png")
    axis = figures[0].axes[1]
    lines = {line.get_label(): line for line in axis.lines}
    references = {"base, new": 10, "base, old": 70, "teacher, new": 80}
    methods = ["SDFT, new", "SDFT, old", "SFT, new", "SFT, old"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [*methods, *references]
    for label, accuracy in references.items():
        assert lines[label].get_ydata() == pytest.approx([accuracy, accuracy])
    looks = {(lines[label].get_color(), lines[label].get_linestyle()) for label in references}
    assert len(looks) == 3
