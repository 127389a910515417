"""Leaked phrases: answers that cite a text absent from the prompt, and loss masks on the first tokens."""

from __future__ import annotations

from sdft_jax.continual.stages import scientific
from sdft_jax.mini.storms import CITATION, CITED, cites_text
from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.statistics import Estimate, difference_interval, mean_interval
from sdft_jax.studies.lab.experiments.knowledge import PRIOR_SKILLS, TASK
from sdft_jax.studies.lab.lab import Comparison, Lab, Variant, compare
from sdft_jax.studies.lab.reports import RATE, Check, Report, percent_bar, share
from sdft_jax.studies.lab.worlds import STORMS

SKIPS = (1, 3, 5)


def artefacts(lab: Lab) -> Report:
    """Measure how often a student cites an absent text, for each number of masked first tokens."""
    plain = Variant("SDFT")
    skipping = [
        Variant(f"skip {n}", changes={"objective": {"skip_tokens": n}}, rate_of="SDFT") for n in SKIPS
    ]
    comparison = compare(lab, STORMS, [plain, *skipping])
    cited = {label: _cited(comparison, label) for label in comparison.outcomes}
    base, teacher = (_share(comparison.base[role][TASK]["completions"]) for role in ("student", "teacher"))
    checks = [
        Check("the phrase leaks into the student", mean_interval([x - base for x in cited["SDFT"]])),
        Check(
            "skipping 3 tokens makes the phrase rarer", difference_interval(cited["SDFT"], cited["skip 3"])
        ),
        Check(
            "skipping 3 tokens costs less than 2 points of accuracy",
            _cost(comparison, "skip 3", 0.02),
            unit="points to spare",
            claimed=False,
        ),
    ]
    rows = [
        {
            "": "base",
            RATE: "–",
            "cites a text (%)": f"{100 * base:.1f}",
            "new facts (%)": f"{100 * comparison.before('new'):.1f}",
            PRIOR_SKILLS: f"{100 * comparison.before('prior'):.1f}",
        },
        {
            "": "teacher: article and answer in context",
            RATE: "–",
            "cites a text (%)": f"{100 * teacher:.1f}",
            "new facts (%)": f"{100 * comparison.before('new', 'teacher'):.1f}",
        },
    ]
    rows += [
        {
            "": label,
            RATE: scientific(comparison.rates[label]),
            "cites a text (%)": share(mean_interval(values)),
            "new facts (%)": share(comparison.estimate(label, "new")),
            PRIOR_SKILLS: share(comparison.estimate(label, "prior")),
        }
        for label, values in cited.items()
    ]
    return Report(
        "artefacts",
        "Leaked phrases",
        "Students write 'Based on the text' although there is no text; masking the loss of the first tokens "
        "(3 in the released code) is a heuristic that suppresses the phrase (section 5).",
        checks,
        rows,
        lambda path, caption: plot_bars(_bars(comparison, cited), path, caption, y_label="answers (%)"),
        comparison.sweep,
        [
            f"The base model was trained to begin {CITED:.0%} of its answers with '{CITATION}' "
            f"({len(CITATION.split())} tokens) if the prompt contains an article, and none otherwise. The "
            "variants 'skip n' have no loss on the first n tokens of a sample; these tokens remain in the "
            "context of student and teacher. They use SDFT's learning rate."
        ],
    )


def _cited(comparison: Comparison, label: str) -> list[float]:
    return [_share(outcome.measured[TASK]["completions"]) for outcome in comparison.outcomes[label][TASK]]


def _share(completions: list[str]) -> float:
    return sum(map(cites_text, completions)) / len(completions)


def _cost(comparison: Comparison, label: str, allowed: float) -> Estimate:
    change = zip(comparison.values(label, "new"), comparison.values("SDFT", "new"), strict=True)
    return mean_interval([skipping - plain + allowed for skipping, plain in change])


def _bars(comparison: Comparison, cited: dict[str, list[float]]) -> list[Bar]:
    untrained = {"base": "student", "teacher": "teacher"}
    shares = {
        label: ([_share(comparison.base[role][TASK]["completions"])], [comparison.before("new", role)])
        for label, role in untrained.items()
    } | {label: (cited[label], comparison.values(label, "new")) for label in comparison.outcomes}
    bars = []
    for label, pair in shares.items():
        for name, values in zip(("cites a text", "new facts right"), pair, strict=True):
            bars.append(percent_bar(label, name, values))
    return bars
