"""New facts from articles: methods against each other (the paper's Table 1), contexts too (its Figure 7)."""

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
"""Strict, lenient, out of distribution."""
SCORES = ("strict", "lenient", "out of distribution")
PRIOR_SKILLS = "prior (%)"


def knowledge(lab: Lab) -> Report:
    """SDFT, SFT and continual pre-training against the model with the article in context."""
    found = compare(lab, STORMS, VARIANTS)
    scores = {label: _scores(found, label) for label in found.outcomes}
    rows = [
        _untrained("base", _single(found, "student"))
        | {PRIOR_SKILLS: share(Estimate(found.before("prior"), None))},
        _untrained("oracle: article and answer in context", _oracle(found)),
    ]
    rows += [
        _trained(found, label, seeds) | {PRIOR_SKILLS: share(found.estimate(label, "prior"))}
        for label, seeds in scores.items()
    ]
    checks = [
        Check(
            f"SDFT above {other} on {name} questions",
            _difference(scores, "SDFT", other, column),
            f"{PAPER_TABLE_1['SDFT'][column]} against {PAPER_TABLE_1[other][column]}",
        )
        for other in ("SFT", "CPT")
        for column, name in enumerate(SCORES)
    ]
    checks.append(
        Check(
            "SDFT within 10 points of the oracle on out of distribution questions",
            mean_interval([row[2] - _oracle(found)[2] + 0.1 for row in scores["SDFT"]]),
            "98 against 100",
            "points to spare",
        )
    )
    return Report(
        "knowledge",
        "New facts from articles",
        "SDFT comes near the oracle (the model with the article in context), above SFT on questions and "
        "answers and far above continual pre-training on the articles (Table 1).",
        checks,
        rows,
        lambda path, caption: plot_bars(_bars(found, scores), path, caption),
        found.sweep,
        [
            "Strict: all details right; lenient: at least one. The test asks for one detail or two in "
            "phrasings that were not trained on. Out of distribution: questions that need the fact and "
            "something the base model knows (the river of the city, the stone of the month); no "
            "demonstration asks them. The oracle is what SDFT's teacher sees: the paper's retrieves the "
            "article alone."
        ],
    )


def context(lab: Lab) -> Report:
    """The teacher is shown the article, the expert's answer, or both."""
    variants = [
        Variant("both"),
        Variant("article only", changes={"data": {"context": "text"}}),
        Variant("answer only", changes={"data": {"context": "demonstration"}}),
        Variant("answer only, rate of both", changes={"data": {"context": "demonstration"}}, rate_of="both"),
    ]
    found = compare(lab, STORMS, variants)
    scores = {label: _scores(found, label) for label in found.outcomes}
    rows = [_untrained("base", _single(found, "student"))]
    rows += [_trained(found, label, seeds) for label, seeds in scores.items()]
    checks = [
        Check(f"both above {alone} on strict questions", _difference(scores, "both", other, 0), paper)
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
            "at one rate, both above the answer alone on out of distribution questions",
            _difference(scores, "both", "answer only, rate of both", 2),
            claimed=False,
        )
    )
    return Report(
        "context",
        "What the teacher is shown",
        "Both article and answer are best, 89, against 75 for the article alone and 37 for the answer alone "
        "(Figure 7; appendix A.2 says that answer alone improves over the article alone).",
        checks,
        rows,
        lambda path, caption: plot_bars(_bars(found, scores, paper=False), path, caption),
        found.sweep,
        [
            "SDFT each time, as in `knowledge`; only what its teacher is shown differs. The picture has the "
            "oracle that is shown both."
        ],
    )


def _scores(found: Comparison, label: str) -> list[tuple[float, float, float]]:
    """For each seed: strict, lenient, out of distribution."""
    return [_graded(outcome.measured) for outcome in found.outcomes[label][TASK]]


def _graded(measured: Any) -> tuple[float, float, float]:
    return measured[TASK]["accuracy"], _lenient(measured[TASK]["completions"]), measured["ood"]["accuracy"]


def _lenient(completions: Sequence[str]) -> float:
    """The same answers to the test, graded leniently."""
    rows = [row for kind in ("direct", "pair") for row in storms.heldout(kind)]
    right = [storms.score_lenient(text, row) for text, row in zip(completions, rows, strict=True)]
    return sum(right) / len(right)


def _single(found: Comparison, role: str) -> tuple[float, float, float]:
    return _graded(found.base[role])


def _oracle(found: Comparison) -> tuple[float, float, float]:
    return _single(found, "teacher")


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


def _trained(found: Comparison, label: str, seeds: Sequence[tuple[float, float, float]]) -> dict[str, str]:
    return {"": label, RATE: scientific(found.rates[label])} | _cells(seeds)


def _bars(
    found: Comparison, scores: dict[str, list[tuple[float, float, float]]], paper: bool = True
) -> list[Bar]:
    groups = {"base": [_single(found, "student")], "oracle": [_oracle(found)]} | scores
    bars = []
    for label, seeds in groups.items():
        for column, name in enumerate(SCORES):
            said = PAPER_TABLE_1[label][column] if paper else None
            bars.append(percent_bar(label, name, [row[column] for row in seeds], said))
    return bars
