"""Optimizers that need less memory than AdamW, each at its own learning rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sdft_jax.reporting.charts import Axes, Line, plot_lines
from sdft_jax.studies.lab.lab import Comparison, Lab, Variant, compare
from sdft_jax.studies.lab.reports import COLUMNS, Report, exceeds, table
from sdft_jax.studies.lab.worlds import lists

RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
"""Learning rates of the sweep; lower than those of the world, since the steps of Lion are larger."""


def _with(**optimizer: Any) -> dict[str, Any]:
    return {"optimizer": optimizer}


VARIANTS = (
    Variant("AdamW"),
    Variant("AdamW, bfloat16 moments", changes=_with(moments="bfloat16"), rate_of="AdamW"),
    Variant("AdamW, 8-bit moments", changes=_with(moments="float8")),
    Variant("Lion, bfloat16 moment", changes=_with(name="lion", moments="bfloat16")),
    Variant("Adafactor", changes=_with(name="adafactor")),
)


def optimizers(lab: Lab) -> Report:
    """Compare AdamW with moments of 32, 16 and 8 bits, Lion and Adafactor in SDFT."""
    comparison = compare(lab, dataclasses.replace(lists(), rates=RATES), VARIANTS)
    checks = [
        exceeds(
            comparison, field, other.label, "AdamW", f"{other.label} above AdamW on {name}", claimed=False
        )
        for other in VARIANTS[1:]
        for field, name in (("new", "the new skill"), ("prior", "prior skills"))
    ]
    return Report(
        "optimizers",
        "Optimizers that need less memory",
        "All experiments use AdamW (Tables 3 and 4).",
        checks,
        table(comparison, COLUMNS),
        lambda path, caption: _draw(comparison, path, caption),
        comparison.sweep,
        [
            "All variants are SDFT. AdamW in bfloat16 uses the learning rate chosen for AdamW; every other "
            "variant has its own sweep. The picture shows the sweep on validation rows, one run per point."
        ],
    )


def _draw(comparison: Comparison, path: Path, caption: str) -> None:
    lines = []
    for field, panel in (("new", "new skill"), ("prior", "prior skills")):
        for label in dict.fromkeys(trial.label for trial in comparison.sweep):
            trials = [trial for trial in comparison.sweep if trial.label == label]
            shares = [100 * getattr(trial, field) for trial in trials]
            lines.append(Line(label, [trial.rate for trial in trials], shares, panel=panel))
    plot_lines(lines, path, caption, axes=Axes("learning rate", "accuracy (%)", log_x=True))
