"""The picture of a run: divergence over steps, skills over steps, new skill against old ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.reporting.sinks import read_jsonl

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by the colour-blind; methods also differ in marker."""
MARKERS = ("o", "s", "^", "D", "v", "P")
CURVES = {
    "loss": "loss",
    "forward_kl": "KL(teacher ‖ student)",
    "reverse_kl": "KL(student ‖ teacher)",
    "kl_to_base": "KL to base",
}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
REFERENCES = ("base", "teacher")
"""Pseudo-methods drawn as lines: the model before training, and with the demonstration in context."""


def plot_run(
    metrics_path: str | os.PathLike[str],
    eval_rows: Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    caption: str = "",
    active: bool = True,
) -> None:
    """Write a PNG with three panels.

    Args:
        metrics_path: metrics.jsonl of a run.
        eval_rows: accuracies in [0, 1]: `method`, `step`, `new` and `old` (either may be missing). The
            methods `base` and `teacher` are drawn as dashed reference lines.
        out: file to write.
        caption: what it was measured on.
        active: False draws nothing; for all processes but 0.
    """
    if not active:
        return
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, a notebook keeps its own backend

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 5.4), layout="constrained")
        axes = figure.subplots(1, 3)
        _draw_curves(axes[0], read_jsonl(Path(metrics_path)))
        _draw_skills(axes[1], eval_rows)
        _draw_trade(axes[2], eval_rows)
        if caption:
            figure.supxlabel(caption, fontsize=8.5, color="#555555")
        figure.savefig(out, dpi=150)


def _draw_curves(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Per-step values, faint, under their running mean."""
    for (key, label), colour in zip(CURVES.items(), COLOURS, strict=False):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps, _running_mean(values), color=colour, label=label, linewidth=1.8)
    axis.set(title="Training", xlabel="step", ylabel="nats per token")
    _legend(axis)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean over about a twentieth of the run."""
    rate = min(1.0, 20 / len(values))
    smooth = [values[0]]
    for value in values[1:]:
        smooth.append((1 - rate) * smooth[-1] + rate * value)
    return smooth


def _draw_skills(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for index, method in enumerate(_methods(rows)):
        for skill, line, fill in (("new", "-", COLOURS[index]), ("old", ":", "white")):
            points = [
                (row["step"], 100 * row[skill]) for row in _of(rows, method) if row.get(skill) is not None
            ]
            if points:
                steps, values = zip(*sorted(points), strict=True)
                look = {"color": COLOURS[index], "marker": MARKERS[index], "markerfacecolor": fill}
                axis.plot(steps, values, line, label=f"{method}, {skill}", **look)
    for value, label in _spread(_references(rows)):
        axis.axhline(value, color="#666666", linestyle="--", linewidth=1)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
        axis.annotate(label, (1, value), fontsize=8.5, va="center", **place)
    axis.set(title="Skills over training", xlabel="step", ylabel="accuracy (%)", ylim=(0, 102))
    _legend(axis)


def _draw_trade(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Up is learning, to the left is forgetting."""
    for index, method in enumerate(_methods(rows)):
        points = sorted((row["step"], row["old"], row["new"]) for row in _of(rows, method) if _has_both(row))
        if points:
            old, new = ([100 * point[k] for point in points] for k in (1, 2))
            look = {"color": COLOURS[index], "marker": MARKERS[index]}
            axis.plot(old, new, alpha=0.5, markersize=4, **look)
            axis.plot(
                old[-1:], new[-1:], linestyle="", markersize=11, label=f"{method} (large: last)", **look
            )
    for row in rows:
        if row["method"] == "base" and _has_both(row):
            axis.plot(
                100 * row["old"], 100 * row["new"], "*", color="#222222", markersize=14, label="base model"
            )
    axis.margins(0.12)
    axis.text(0.99, 0.98, "better ↗", transform=axis.transAxes, ha="right", va="top", color="#777777")
    axis.set(title="Learning without forgetting", xlabel="old skills, accuracy (%)")
    axis.set_ylabel("new skill, accuracy (%)")
    _legend(axis)


def _methods(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows if row["method"] not in REFERENCES))


def _of(rows: Sequence[Mapping[str, Any]], method: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["method"] == method]


def _has_both(row: Mapping[str, Any]) -> bool:
    return row.get("old") is not None and row.get("new") is not None


def _references(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    found = [(row["method"], skill, row.get(skill)) for row in rows for skill in ("new", "old")]
    return [
        (method, skill, 100 * value)
        for method, skill, value in found
        if method in REFERENCES and value is not None
    ]


def _spread(references: Sequence[tuple[str, str, float]], least: float = 5.0) -> list[tuple[float, str]]:
    """(accuracy, label) of each line; lines closer than `least` share one label, a line of text each."""
    spread: list[tuple[float, str]] = []
    for method, skill, value in sorted(references, key=lambda reference: reference[2]):
        if spread and value - spread[-1][0] < least:
            spread[-1] = (spread[-1][0], f"{method}, {skill}\n{spread[-1][1]}")
        else:
            spread.append((value, f"{method}, {skill}"))
    return spread


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
