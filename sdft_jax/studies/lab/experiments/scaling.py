"""Base models with weak, medium and strong in-context ability (the paper's Figure 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from sdft_jax.reporting.charts import Axes, plot_lines
from sdft_jax.reporting.statistics import Estimate, difference_interval, mean_interval
from sdft_jax.studies.lab.lab import Comparison, Lab, Swept, Variant, compare
from sdft_jax.studies.lab.reports import COLUMNS, Check, Report, percent_line, table
from sdft_jax.studies.lab.worlds import lists

SIZES = ("small", "medium", "large")
VARIANTS = (Variant("SDFT"), Variant("SFT", "sft"))


def scale(lab: Lab) -> Report:
    """Measure the gain of SDFT over SFT at three sizes of the base model."""
    by_size = {size: compare(lab, lists(size), VARIANTS) for size in SIZES}
    gains = {size: _gain(one) for size, one in by_size.items()}
    checks = [
        Check(
            "SDFT below SFT on the new skill at the smallest base",
            _minus(_new_gain(by_size["small"])),
            "62.1 against 65.4 at 3B",
        ),
        Check(
            "SDFT above SFT on the new skill at the largest base",
            mean_interval(_new_gain(by_size["large"])),
            "77.3 against 70.4 at 14B",
        ),
        Check(
            "the difference grows from the smallest to the largest base",
            difference_interval(_new_gain(by_size["large"]), _new_gain(by_size["small"])),
            "-3.3, 4.0, 6.9 points at 3B, 7B, 14B",
        ),
    ]
    rows = [{"size": size} | dict(row) for size, one in by_size.items() for row in table(one, COLUMNS)]
    return Report(
        "scale",
        "Weak, medium and strong in-context ability",
        "SDFT minus SFT is -3.3 points at 3B, 4.0 at 7B and 6.9 at 14B: the gain grows with in-context "
        "ability and is negative for the smallest model (Figure 5).",
        checks,
        rows,
        lambda path, caption: _draw(by_size, gains, path, caption),
        [_sized(size, row) for size, one in by_size.items() for row in one.sweep],
        [
            "There is one base model per size, trained with the same recipe for the same number of steps. "
            "The two smaller shapes were chosen from twelve by their accuracy on held-out questions with "
            "and without a demonstration, before any method was run; below the largest, ability is not a "
            "smooth function of size. Both also know fewer of the old skills, so their prior accuracy shows "
            "little about forgetting. Their learning rates are ten times those of the largest base: in a "
            "first run with the same rates for all sizes, SFT's best rate at the medium base was the "
            "highest, and at the smallest base no rate learned anything."
        ],
    )


def _sized(size: str, row: Swept) -> Swept:
    return dataclasses.replace(row, label=f"{size}: {row.label}")


def _new_gain(comparison: Comparison) -> list[float]:
    return [
        a - b for a, b in zip(comparison.values("SDFT", "new"), comparison.values("SFT", "new"), strict=True)
    ]


def _minus(values: list[float]) -> Estimate:
    return mean_interval([-x for x in values])


def _gain(comparison: Comparison) -> Mapping[str, Estimate]:
    """Return SDFT minus SFT on the new skill and on prior skills."""
    return {
        field: difference_interval(comparison.values("SDFT", field), comparison.values("SFT", field))
        for field in ("new", "prior")
    }


def _draw(
    by_size: Mapping[str, Comparison], gains: Mapping[str, Mapping[str, Estimate]], path: Path, caption: str
) -> None:
    x = [100 * one.before("new", "teacher") for one in by_size.values()]
    lines = []
    for field, label in (("new", "new skill"), ("prior", "prior skills")):
        estimates = [gains[size][field] for size in by_size]
        lines.append(percent_line(label, x, estimates))
    plot_lines(
        lines,
        path,
        caption,
        axes=Axes("base, shown the demonstration: accuracy (%)", "SDFT − SFT (points)"),
        references={"no difference": 0.0},
    )
