"""Phrases that only make sense beside a text, and the first tokens that are spared the loss."""

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
    """How often a student cites a text that it does not have, by the number of first tokens without loss."""
    plain = Variant("SDFT")
    skipping = [
        Variant(f"skip {n}", changes={"objective": {"skip_tokens": n}}, rate_of="SDFT") for n in SKIPS
    ]
    found = compare(lab, STORMS, [plain, *skipping])
    cited = {label: _cited(found, label) for label in found.outcomes}
    base, teacher = (_share(found.base[role][TASK]["completions"]) for role in ("student", "teacher"))
    checks = [
        Check("the phrase leaks into the student", mean_interval([x - base for x in cited["SDFT"]])),
        Check("skipping 3 tokens makes it rarer", difference_interval(cited["SDFT"], cited["skip 3"])),
        Check(
            "skipping 3 tokens costs less than 2 points of accuracy",
            _cost(found, "skip 3", 0.02),
            unit="points to spare",
            claimed=False,
        ),
    ]
    rows = [
        {
            "": "base",
            RATE: "–",
            "cites a text (%)": f"{100 * base:.1f}",
            "new facts (%)": f"{100 * found.before('new'):.1f}",
            PRIOR_SKILLS: f"{100 * found.before('prior'):.1f}",
        },
        {
            "": "teacher: article and answer in context",
            RATE: "–",
            "cites a text (%)": f"{100 * teacher:.1f}",
            "new facts (%)": f"{100 * found.before('new', 'teacher'):.1f}",
        },
    ]
    rows += [
        {
            "": label,
            RATE: scientific(found.rates[label]),
            "cites a text (%)": share(mean_interval(values)),
            "new facts (%)": share(found.estimate(label, "new")),
            PRIOR_SKILLS: share(found.estimate(label, "prior")),
        }
        for label, values in cited.items()
    ]
    return Report(
        "artefacts",
        "Phrases that leak",
        "Students say 'Based on the text' where there is none; masking the loss of the first tokens (3 in "
        "the released code) suppresses it, a heuristic (section 5).",
        checks,
        rows,
        lambda path, caption: plot_bars(_bars(found, cited), path, caption, y_label="answers (%)"),
        found.sweep,
        [
            f"The base model was trained to begin {CITED:.0%} of its answers to an article with "
            f"'{CITATION}' ({len(CITATION.split())} tokens), and none without one. 'skip n': no loss on a "
            "sample's first n tokens, which stay in the context of both roles; at SDFT's learning rate."
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
    untrained = {"base": "student", "teacher": "teacher"}
    shares = {
        label: ([_share(found.base[role][TASK]["completions"])], [found.before("new", role)])
        for label, role in untrained.items()
    } | {label: (cited[label], found.values(label, "new")) for label in found.outcomes}
    bars = []
    for label, pair in shares.items():
        for name, values in zip(("cites a text", "new facts right"), pair, strict=True):
            bars.append(percent_bar(label, name, values))
    return bars
