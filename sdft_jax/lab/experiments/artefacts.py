"""Phrases that only make sense beside a text, and the first tokens that are spared the loss."""

from __future__ import annotations

from sdft_jax.figures import Bar, plot_bars
from sdft_jax.lab.experiments.knowledge import TASK
from sdft_jax.lab.lab import Comparison, Lab, Variant, compare
from sdft_jax.lab.reports import Check, Report, share
from sdft_jax.lab.worlds import STORMS
from sdft_jax.mini.storms import cites_text
from sdft_jax.stages import scientific
from sdft_jax.statistics import Estimate, difference_interval, mean_interval

SKIPS = (1, 3, 5)


def artefacts(lab: Lab) -> Report:
    """How often a student cites a text that it does not have, by the number of first tokens without loss."""
    plain = Variant("SDFT")
    skipping = [Variant(f"skip {n}", changes={"objective": {"skip_tokens": n}}) for n in SKIPS]
    found = compare(lab, STORMS, [plain, *skipping])
    cited = {label: _cited(found, label) for label in found.outcomes}
    base, teacher = (_share(found.base[role][TASK]["completions"]) for role in ("student", "teacher"))
    checks = [
        Check("the phrase leaks into the student", mean_interval([x - base for x in cited["SDFT"]])),
        Check("skipping 3 tokens makes it rarer", difference_interval(cited["SDFT"], cited["skip 3"])),
        Check("skipping 3 tokens costs less than 2 points of accuracy", _cost(found, "skip 3", 0.02)),
    ]
    rows = [
        {
            "": "base",
            "cites a text (%)": f"{100 * base:.1f}",
            "new facts (%)": f"{100 * found.before('new'):.1f}",
        },
        {
            "": "teacher (article in context)",
            "cites a text (%)": f"{100 * teacher:.1f}",
            "new facts (%)": f"{100 * found.before('new', 'teacher'):.1f}",
        },
    ]
    rows += [
        {
            "": label,
            "rate": scientific(found.rates[label]),
            "cites a text (%)": share(mean_interval(values)),
            "new facts (%)": share(found.estimate(label, "new")),
            "prior (%)": share(found.estimate(label, "prior")),
        }
        for label, values in cited.items()
    ]
    return Report(
        "artefacts",
        "Phrases that leak",
        "students say 'Based on the text' where there is none; masking the loss of the first tokens (3 in "
        "the released "
        "code) suppresses it, a heuristic (section 5).",
        checks,
        rows,
        lambda path, caption: plot_bars(_bars(found, cited), path, caption, y_label="%"),
        found.sweep,
        [
            "The base model begins half of its answers to an article with 'according to the text ,' (5 "
            "tokens), and none "
            "without one. Skipped tokens stay in the context of both roles."
        ],
    )


def _cited(found: Comparison, label: str) -> list[float]:
    return [_share(outcome.measured[TASK]["completions"]) for outcome in found.outcomes[label][TASK]]


def _share(completions: list[str]) -> float:
    return sum(map(cites_text, completions)) / len(completions)


def _cost(found: Comparison, label: str, allowed: float) -> Estimate:
    change = zip(found.values(label, "new"), found.values("SDFT", "new"), strict=True)
    return mean_interval([skipping - plain + allowed for skipping, plain in change])


def _bars(found: Comparison, cited: dict[str, list[float]]) -> list[Bar]:
    bars = []
    for label in found.outcomes:
        for name, values in (("cites a text", cited[label]), ("new facts right", found.values(label, "new"))):
            mean, half = mean_interval(values)
            bars.append(Bar(label, name, 100 * mean, None if half is None else 100 * half))
    return bars
