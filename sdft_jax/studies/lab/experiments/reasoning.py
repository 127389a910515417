"""Answer-only demonstrations to a model that thinks before it answers (the paper's Table 2)."""

from __future__ import annotations

from collections.abc import Mapping

from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.statistics import mean_interval
from sdft_jax.studies.lab.lab import Comparison, Lab, Variant, compare
from sdft_jax.studies.lab.reports import COLUMNS, Check, Report, exceeds, percent_bar, table
from sdft_jax.studies.lab.worlds import CHAINS

SAME = Variant("SFT at SDFT's rate", "sft", rate_of="SDFT")


def reasoning(lab: Lab) -> Report:
    """SFT and SDFT on answers without a thought: what becomes of thought and accuracy."""
    found = compare(lab, CHAINS, [Variant("SDFT"), Variant("SFT", "sft"), SAME])
    before, length = found.before("new"), found.before("length")
    ratio = {label: [x / length for x in found.values(label, "length")] for label in found.outcomes}
    checks = _checks(found, before, ratio)
    bars = [Bar("base", "accuracy (%)", 100 * before), Bar("base", "length (% of the base's)", 100.0)]
    for label in found.outcomes:
        for name, values in (
            ("accuracy (%)", found.values(label, "new")),
            ("length (% of the base's)", ratio[label]),
        ):
            bars.append(percent_bar(label, name, values))
    return Report(
        "reasoning",
        "Demonstrations without the thought",
        "With answers alone as demonstrations, SFT shortens the chain of thought and loses accuracy (31.2 to "
        "23.5), SDFT keeps most of it and gains (43.7; Table 2).",
        checks,
        table(found, COLUMNS),
        lambda path, caption: plot_bars(bars, path, caption, y_label="%"),
        found.sweep,
        [
            "A third of the rows are chains of verbs that the base model knows, the rest end in one that "
            "it can only guess at; the expert shows the final list alone.",
            *_idle(found, before),
        ],
    )


def _checks(found: Comparison, before: float, ratio: Mapping[str, list[float]]) -> list[Check]:
    """The claims, given the base's accuracy and each length as a share of the base's."""
    new = {label: found.values(label, "new") for label in found.outcomes}
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
        exceeds(found, "prior", "SDFT", "SFT", "SDFT above SFT on prior chains", claimed=False),
        Check("at SDFT's rate, SFT shortens the answer", shorter_there, unit="%", claimed=False),
        Check("at SDFT's rate, SFT loses accuracy", lost_there, claimed=False),
    ]


def _idle(found: Comparison, before: float) -> list[str]:
    """Why SFT may seem to keep its thought: the rate of best accuracy can be one that trains little."""
    tried = {row.rate: row.new for row in found.sweep if row.label == "SFT"}
    if found.rates["SFT"] > min(tried) or max(tried.values()) > before:
        return []
    return [
        "SFT is below the base model's accuracy at every rate of the sweep, so that the rate chosen for it "
        "is the lowest, which changes it least. The row at SDFT's rate shows what it does where it learns."
    ]
