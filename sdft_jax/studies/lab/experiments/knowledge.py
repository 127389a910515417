"""New facts from articles: comparisons of methods (the paper's Table 1) and of contexts (its Figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdft_jax.continual.stages import scientific
from sdft_jax.mini import storms
from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.statistics import Estimate, difference_interval, mean_interval
from sdft_jax.studies.lab.lab import Comparison, Lab, Variant, compare
from sdft_jax.studies.lab.reports import RATE, Check, Report, percent_bar, share
from sdft_jax.studies.lab.worlds import STORMS

TASK = STORMS.skills[0]
VARIANTS = (Variant("SDFT"), Variant("SFT", "sft"), Variant("CPT", "cpt"))
PAPER_TABLE_1 = {
    "base": (0, 0, 0),
    "oracle": (91, 100, 100),
    "CPT": (9, 37, 7),
    "SFT": (80, 95, 80),
    "SDFT": (89, 100, 98),
}
"""Strict, lenient and out-of-distribution accuracy, in percent."""
SCORES = ("strict", "lenient", "out of distribution")
PRIOR_SKILLS = "prior (%)"


def knowledge(lab: Lab) -> Report:
    """Compare SDFT, SFT and continual pre-training with the model that has the article in context."""
    comparison = compare(lab, STORMS, VARIANTS)
    scores = {label: _scores(comparison, label) for label in comparison.outcomes}
    rows = [
        _untrained("base", _single(comparison, "student"))
        | {PRIOR_SKILLS: share(Estimate(comparison.before("prior"), None))},
        _untrained("oracle: article and answer in context", _oracle(comparison)),
    ]
    rows += [
        _trained(comparison, label, seeds) | {PRIOR_SKILLS: share(comparison.estimate(label, "prior"))}
        for label, seeds in scores.items()
    ]
    checks = [
        Check(
            f"SDFT above {other} on {name.replace(' ', '-')} questions",
            _difference(scores, "SDFT", other, column),
            f"{PAPER_TABLE_1['SDFT'][column]} against {PAPER_TABLE_1[other][column]}",
        )
        for other in ("SFT", "CPT")
        for column, name in enumerate(SCORES)
    ]
    checks.append(
        Check(
            "SDFT within 10 points of the oracle on out-of-distribution questions",
            mean_interval([row[2] - _oracle(comparison)[2] + 0.1 for row in scores["SDFT"]]),
            "98 against 100",
            "points to spare",
        )
    )
    return Report(
        "knowledge",
        "New facts from articles",
        "SDFT comes close to the oracle (the model with the article in context). It is above SFT on "
        "questions and answers, and far above continual pre-training on the articles (Table 1).",
        checks,
        rows,
        lambda path, caption: plot_bars(_bars(comparison, scores), path, caption),
        comparison.sweep,
        [
            "Strict: all details are right. Lenient: at least one detail is right. The test questions "
            "require one or two details and use phrasings absent from training. Out of distribution: "
            "questions that require the fact and something that the base model knows (the river of the "
            "city, the stone of the month); no demonstration has such a question. The oracle has the same "
            "context as SDFT's teacher, article and answer; the paper's oracle retrieves only the article."
        ],
    )


def context(lab: Lab) -> Report:
    """Compare teachers with the article, the expert's answer, or both in context."""
    variants = [
        Variant("both"),
        Variant("article only", changes={"data": {"context": "text"}}),
        Variant("answer only", changes={"data": {"context": "demonstration"}}),
        Variant("answer only, rate of both", changes={"data": {"context": "demonstration"}}, rate_of="both"),
    ]
    comparison = compare(lab, STORMS, variants)
    scores = {label: _scores(comparison, label) for label in comparison.outcomes}
    rows = [_untrained("base", _single(comparison, "student"))]
    rows += [_trained(comparison, label, seeds) for label, seeds in scores.items()]
    checks = [
        Check(
            f"article and answer above {alone} on strict questions",
            _difference(scores, "both", other, 0),
            paper,
        )
        for other, alone, paper in (
            ("article only", "the article alone", "89 against 75"),
            ("answer only", "the answer alone", "89 against 37"),
        )
    ]
    checks.append(
        Check(
            "the article alone above the answer alone on strict questions",
            _difference(scores, "article only", "answer only", 0),
            "75 against 37 in Figure 7; the text of appendix A.2 says the opposite",
            claimed=False,
        )
    )
    checks.append(
        Check(
            "at the same rate, article and answer above the answer alone on out-of-distribution questions",
            _difference(scores, "both", "answer only, rate of both", 2),
            claimed=False,
        )
    )
    return Report(
        "context",
        "Context of the teacher",
        "Article and answer together are best: 89, against 75 for the article alone and 37 for the answer "
        "alone (Figure 7; according to appendix A.2, the answer alone improves over the article alone).",
        checks,
        rows,
        lambda path, caption: plot_bars(_bars(comparison, scores, paper=False), path, caption),
        comparison.sweep,
        [
            "All variants are SDFT, as in `knowledge`; only the teacher's context differs. The oracle in the "
            "picture has article and answer in context."
        ],
    )


def _scores(comparison: Comparison, label: str) -> list[tuple[float, float, float]]:
    """Return strict, lenient and out-of-distribution accuracy for each seed."""
    return [_graded(outcome.measured) for outcome in comparison.outcomes[label][TASK]]


def _graded(measured: Any) -> tuple[float, float, float]:
    return measured[TASK]["accuracy"], _lenient(measured[TASK]["completions"]), measured["ood"]["accuracy"]


def _lenient(completions: Sequence[str]) -> float:
    """Return the accuracy of answers to the test if one right detail suffices."""
    rows = [row for kind in ("direct", "pair") for row in storms.heldout(kind)]
    right = [storms.score_lenient(text, row) for text, row in zip(completions, rows, strict=True)]
    return sum(right) / len(right)


def _single(comparison: Comparison, role: str) -> tuple[float, float, float]:
    return _graded(comparison.base[role])


def _oracle(comparison: Comparison) -> tuple[float, float, float]:
    return _single(comparison, "teacher")


def _difference(
    scores: dict[str, list[tuple[float, float, float]]], winner: str, loser: str, column: int
) -> Estimate:
    first, second = ([row[column] for row in scores[label]] for label in (winner, loser))
    return difference_interval(first, second)


def _cells(seeds: Sequence[tuple[float, float, float]]) -> dict[str, str]:
    return {
        f"{name} (%)": share(mean_interval([row[column] for row in seeds]))
        for column, name in enumerate(SCORES)
    }


def _untrained(label: str, scores: tuple[float, float, float]) -> dict[str, str]:
    return {"": label, RATE: "–"} | _cells([scores])


def _trained(
    comparison: Comparison, label: str, seeds: Sequence[tuple[float, float, float]]
) -> dict[str, str]:
    return {"": label, RATE: scientific(comparison.rates[label])} | _cells(seeds)


def _bars(
    comparison: Comparison, scores: dict[str, list[tuple[float, float, float]]], paper: bool = True
) -> list[Bar]:
    groups = {"base": [_single(comparison, "student")], "oracle": [_oracle(comparison)]} | scores
    bars = []
    for label, seeds in groups.items():
        for column, name in enumerate(SCORES):
            reported = PAPER_TABLE_1[label][column] if paper else None
            bars.append(percent_bar(label, name, [row[column] for row in seeds], reported))
    return bars
