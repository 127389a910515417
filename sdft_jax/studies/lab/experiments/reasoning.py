"""Answer-only demonstrations for a model that thinks before it answers (the paper's Table 2)."""

from __future__ import annotations

from collections.abc import Mapping

from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.statistics import mean_interval
from sdft_jax.studies.lab.lab import Comparison, Lab, Variant, compare
from sdft_jax.studies.lab.reports import COLUMNS, Check, Report, exceeds, percent_bar, table
from sdft_jax.studies.lab.worlds import CHAINS

SAME = Variant("SFT at SDFT's rate", "sft", rate_of="SDFT")


def reasoning(lab: Lab) -> Report:
    """Measure the effect of answer-only demonstrations on answer length and accuracy, for SFT and SDFT."""
    comparison = compare(lab, CHAINS, [Variant("SDFT"), Variant("SFT", "sft"), SAME])
    before, length = comparison.before("new"), comparison.before("length")
    ratio = {label: [x / length for x in comparison.values(label, "length")] for label in comparison.outcomes}
    checks = _checks(comparison, before, ratio)
    bars = [Bar("base", "accuracy (%)", 100 * before), Bar("base", "length (% of the base's)", 100.0)]
    for label in comparison.outcomes:
        for name, values in (
            ("accuracy (%)", comparison.values(label, "new")),
            ("length (% of the base's)", ratio[label]),
        ):
            bars.append(percent_bar(label, name, values))
    return Report(
        "reasoning",
        "Demonstrations without chain of thought",
        "With answer-only demonstrations, SFT shortens the chain of thought and loses accuracy (31.2 to "
        "23.5); SDFT keeps most of the chain of thought and gains accuracy (31.2 to 43.7; Table 2).",
        checks,
        table(comparison, COLUMNS),
        lambda path, caption: plot_bars(bars, path, caption, y_label="%"),
        comparison.sweep,
        [
            "In a third of the rows, the base model knows all verbs of the chain; in the others, the last "
            "verb is one that it can only guess. The expert gives only the final list.",
            *_idle(comparison, before),
        ],
    )


def _checks(comparison: Comparison, before: float, ratio: Mapping[str, list[float]]) -> list[Check]:
    """Return the checks, given the base model's accuracy and the answer lengths relative to its own."""
    new = {label: comparison.values(label, "new") for label in comparison.outcomes}
    shorter = mean_interval([1 - x for x in ratio["SFT"]])
    kept = mean_interval([x - 0.9 for x in ratio["SDFT"]])
    lost = mean_interval([before - x for x in new["SFT"]])
    gained = mean_interval([x - before for x in new["SDFT"]])
    lost_there = mean_interval([before - x for x in new[SAME.label]])
    shorter_there = mean_interval([1 - x for x in ratio[SAME.label]])
    return [
        Check("SFT shortens the answer", shorter, "4612 to 3273 tokens", "%"),
        Check("SDFT keeps nine tenths of the length", kept, "4612 to 4180 tokens", "% to spare"),
        Check("SFT loses accuracy", lost, "31.2 to 23.5"),
        Check("SDFT gains accuracy", gained, "31.2 to 43.7"),
        exceeds(comparison, "prior", "SDFT", "SFT", "SDFT above SFT on prior chains", claimed=False),
        Check("at SDFT's rate, SFT shortens the answer", shorter_there, unit="%", claimed=False),
        Check("at SDFT's rate, SFT loses accuracy", lost_there, claimed=False),
    ]


def _idle(comparison: Comparison, before: float) -> list[str]:
    """Explain why SFT may seem to keep its chain of thought: its best rate can be one that hardly trains."""
    accuracies = {row.rate: row.new for row in comparison.sweep if row.label == "SFT"}
    if comparison.rates["SFT"] > min(accuracies) or max(accuracies.values()) > before:
        return []
    return [
        "SFT is below the base model's accuracy at every rate of the sweep, so its chosen rate is the "
        "lowest, which changes the model least. The row at SDFT's rate shows SFT at a rate that changes the "
        "model more."
    ]
