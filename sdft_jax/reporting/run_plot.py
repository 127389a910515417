"""A plot of one training run: divergence and accuracy over steps, and new skill against old skills."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.reporting.sinks import read_jsonl
from sdft_jax.reporting.style import BLACK, COLOURS, GREY, MARKERS, STYLE, save_figure

CURVES = {
    "loss": "loss",
    "forward_kl": "KL(teacher ‖ student)",
    "reverse_kl": "KL(student ‖ teacher)",
    "kl_to_base": "KL to base",
}
REFERENCES = {"base": GREY, "teacher": BLACK}
"""Colors of the horizontal lines for the model before training, without and with the demonstration."""


def plot_run(
    metrics_path: str | os.PathLike[str],
    eval_rows: Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    caption: str = "",
) -> None:
    """Plot the training metrics, the accuracies over steps, and new skill against old skills in three panels.

    Args:
        metrics_path: metrics.jsonl of a run.
        eval_rows: rows with `method`, `step`, and the accuracies `new` and `old` in [0, 1]; either accuracy
            may be missing. The methods `base` and `teacher` are drawn as horizontal lines.
        out: PNG file to write.
        caption: text below the panels, such as the hardware.
    """
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would replace the backend of a notebook

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 5.4), layout="constrained")
        axes = figure.subplots(1, 3)
        _draw_curves(axes[0], read_jsonl(Path(metrics_path)))
        _draw_skills(axes[1], eval_rows)
        _draw_tradeoff(axes[2], eval_rows)
        if caption:
            figure.supxlabel(caption, fontsize=8.5, color="#555555")
        save_figure(figure, out)


def _draw_curves(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the metrics of each step in a faint color, with their running mean on top."""
    for (key, label), color in zip(CURVES.items(), COLOURS, strict=False):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axis.plot(steps, _running_mean(values), color=color, label=label, linewidth=1.8)
    axis.set(title="Training", xlabel="step", ylabel="nats per token")
    _legend(axis)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average over about a twentieth of the run."""
    rate = min(1.0, 20 / len(values))
    smooth = [values[0]]
    for value in values[1:]:
        smooth.append((1 - rate) * smooth[-1] + rate * value)
    return smooth


def _draw_skills(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for index, method in enumerate(_methods(rows)):
        for skill, line, fill in (("new", "-", COLOURS[index]), ("old", ":", "white")):
            points = [
                (row["step"], 100 * row[skill])
                for row in _rows_of(rows, method)
                if row.get(skill) is not None
            ]
            if points:
                steps, values = zip(*sorted(points), strict=True)
                look = {"color": COLOURS[index], "marker": MARKERS[index], "markerfacecolor": fill}
                axis.plot(steps, values, line, label=f"{method}, {skill}", **look)
    for method, color in REFERENCES.items():
        for row in _rows_of(rows, method):
            for skill, line in (("new", "--"), ("old", ":")):
                if row.get(skill) is not None:
                    look = {"color": color, "linestyle": line, "label": f"{method}, {skill}"}
                    axis.axhline(100 * row[skill], linewidth=1.2, **look)
    axis.set(title="Skills over training", xlabel="step", ylabel="accuracy (%)", ylim=(0, 102))
    _legend(axis)


def _draw_tradeoff(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw accuracy on the new skill against accuracy on old skills; a move to the left is forgetting."""
    for index, method in enumerate(_methods(rows)):
        points = sorted(
            (row["step"], row["old"], row["new"]) for row in _rows_of(rows, method) if _has_both(row)
        )
        if points:
            old, new = ([100 * point[k] for point in points] for k in (1, 2))
            look = {"color": COLOURS[index], "marker": MARKERS[index]}
            axis.plot(old, new, alpha=0.5, markersize=4, **look)
            axis.plot(
                old[-1:], new[-1:], linestyle="", markersize=11, label=f"{method} (large: last)", **look
            )
    for row in rows:
        if row["method"] == "base" and _has_both(row):
            axis.plot(100 * row["old"], 100 * row["new"], "*", color=BLACK, markersize=14, label="base model")
    axis.margins(0.12)
    axis.text(0.99, 0.98, "better ↗", transform=axis.transAxes, ha="right", va="top", color="#777777")
    axis.set(title="Learning without forgetting", xlabel="old skills, accuracy (%)")
    axis.set_ylabel("new skill, accuracy (%)")
    _legend(axis)


def _methods(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows if row["method"] not in REFERENCES))


def _rows_of(rows: Sequence[Mapping[str, Any]], method: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["method"] == method]


def _has_both(row: Mapping[str, Any]) -> bool:
    return row.get("old") is not None and row.get("new") is not None


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
