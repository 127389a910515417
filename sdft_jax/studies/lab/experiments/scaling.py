"""Base models of weak, middling and strong in-context ability (the paper's Figure 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from sdft_jax.reporting.charts import plot_lines
from sdft_jax.reporting.statistics import Estimate, difference_interval, mean_interval
from sdft_jax.studies.lab.lab import Comparison, Lab, Swept, Variant, compare
from sdft_jax.studies.lab.reports import COLUMNS, Check, Report, percent_line, table
from sdft_jax.studies.lab.worlds import lists

SIZES = ("small", "medium", "large")
VARIANTS = (Variant("SDFT"), Variant("SFT", "sft"))


def scale(lab: Lab) -> Report:
    """The gain over SFT at three sizes."""
    found = {size: compare(lab, lists(size), VARIANTS) for size in SIZES}
    gains = {size: _gain(one) for size, one in found.items()}
    checks = [
        Check(
            "SDFT below SFT on the new skill at the smallest base",
            _minus(_new_gain(found["small"])),
            "62.1 against 65.4 at 3B",
        ),
        Check(
            "SDFT above SFT on the new skill at the largest base",
            mean_interval(_new_gain(found["large"])),
            "77.3 against 70.4 at 14B",
        ),
        Check(
            "the difference grows from the smallest to the largest",
            difference_interval(_new_gain(found["large"]), _new_gain(found["small"])),
            "-3.3, 4.0, 6.9 points at 3B, 7B, 14B",
        ),
    ]
    rows = [{"size": size} | dict(row) for size, one in found.items() for row in table(one, COLUMNS)]
    return Report(
        "scale",
        "Weak, middling and strong in-context ability",
        "SDFT minus SFT is -3.3 points at 3B, 4.0 at 7B and 6.9 at 14B: the gain grows with in-context "
        "ability and is negative at the smallest (Figure 5).",
        checks,
        rows,
        lambda path, caption: _draw(found, gains, path, caption),
        [_sized(size, row) for size, one in found.items() for row in one.sweep],
        [
            "One base model of each size, made by the same recipe in the same number of steps. The two "
            "smaller shapes were picked out of twelve by how well they answer held-out questions with and "
            "without a demonstration, before any method was run; below the largest, ability is no smooth "
            "function of size. Both know fewer of the old skills too, so that their prior column says "
            "little about forgetting. Their learning rates are ten times those of the largest base: in a "
            "first run with the same rates for all, SFT's best at the middling base was the last of them, "
            "and at the smallest nothing was learned at any."
        ],
    )


def _sized(size: str, row: Swept) -> Swept:
    return dataclasses.replace(row, label=f"{size}: {row.label}")


def _new_gain(found: Comparison) -> list[float]:
    return [a - b for a, b in zip(found.values("SDFT", "new"), found.values("SFT", "new"), strict=True)]


def _minus(values: list[float]) -> Estimate:
    return mean_interval([-x for x in values])


def _gain(found: Comparison) -> Mapping[str, Estimate]:
    """SDFT minus SFT, on the new skill and on prior skills."""
    return {
        field: difference_interval(found.values("SDFT", field), found.values("SFT", field))
        for field in ("new", "prior")
    }


def _draw(
    found: Mapping[str, Comparison], gains: Mapping[str, Mapping[str, Estimate]], path: Path, caption: str
) -> None:
    x = [100 * one.before("new", "teacher") for one in found.values()]
    lines = []
    for field, label in (("new", "new skill"), ("prior", "prior skills")):
        estimates = [gains[size][field] for size in found]
        lines.append(percent_line(label, x, estimates))
    plot_lines(
        lines,
        path,
        caption,
        x_label="base, shown the demonstration: accuracy (%)",
        y_label="SDFT − SFT (points)",
        references={"no difference": 0.0},
    )
