"""pass@k, and the distance of trained models from the base model relative to their accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from sdft_jax.reporting.charts import Axes, Line, plot_lines
from sdft_jax.reporting.statistics import difference_interval, mean_interval, mean_pass_at_k
from sdft_jax.studies.lab.experiments.skills import SDFT, SFT
from sdft_jax.studies.lab.lab import Comparison, Lab, compare, each_seed, sweep
from sdft_jax.studies.lab.reports import COLUMNS, Check, Report, percent_line, share, table
from sdft_jax.studies.lab.trials import Result
from sdft_jax.studies.lab.worlds import lists

KS = (1, 2, 4, 8, 16, 32, 64, 128)
PAPER_PASS_AT_K = {
    "SDFT": (58.7, 66.2, 73.4, 78.1, 81.6, 84.4, 86.8, 88.6),
    "SFT": (52.5, 59.8, 67.2, 72.7, 76.9, 80.5, 83.7, 86.0),
    "base": (39.4, 47.2, 54.0, 58.1, 63.3, 65.8, 69.3, 71.4),
}


def pass_at_k(lab: Lab) -> Report:
    """Estimate pass@k, without bias, for the base model, SFT and SDFT."""
    world, sampling = lists(), {"n": max(KS), "prompts": 32 if lab.quick else 64}
    skill = world.skills[0]
    rates, swept = sweep(lab, world, [SDFT, SFT], skill)
    base, trained = each_seed(lab, world, [SDFT, SFT], rates, [skill], "pass@k", pass_at_k=sampling)
    curves = {
        label: [_curve(result["verdicts"]) for result in seeds]
        for label, seeds in (trained | {"base": [base]}).items()
    }
    means = {
        label: [mean_interval(column) for column in zip(*seeds, strict=True)]
        for label, seeds in curves.items()
    }
    before = curves["base"][0]
    checked = [(i, k) for i, k in enumerate(KS) if k in (1, 8, 128)]
    checks = [
        Check(
            f"SDFT above SFT at k={k}",
            difference_interval([c[i] for c in curves["SDFT"]], [c[i] for c in curves["SFT"]]),
            f"{PAPER_PASS_AT_K['SDFT'][i]} against {PAPER_PASS_AT_K['SFT'][i]}",
        )
        for i, k in checked
    ] + [
        Check(
            f"SFT above the base at k={k}",
            mean_interval([c[i] - before[i] for c in curves["SFT"]]),
            f"{PAPER_PASS_AT_K['SFT'][i]} against {PAPER_PASS_AT_K['base'][i]}",
        )
        for i, k in checked
    ]
    rows = [
        {"": label} | {f"k={k}": share(estimate) for k, estimate in zip(KS, estimates, strict=True)}
        for label, estimates in means.items()
    ]
    return Report(
        "pass@k",
        "pass@k",
        "SDFT is above SFT, and SFT above the base model, at every k up to 128, so the gain is not mere "
        "sharpening.",
        checks,
        rows,
        lambda path, caption: plot_lines(
            [percent_line(label, KS, estimates) for label, estimates in means.items()],
            path,
            caption,
            axes=Axes("k", "pass@k (%)", log_x=True),
        ),
        swept,
        [
            f"Each of the first {sampling['prompts']} prompts of the test has {sampling['n']} samples at "
            "temperature 1 and top-p 0.95. The estimate is the unbiased one of Chen et al. (2021).",
            *_unsure(trained["SFT"], skill, means["SFT"][0].mean),
        ],
    )


def _unsure(seeds: Sequence[Result], skill: str, sampled: float) -> list[str]:
    """Explain why greedy answers may be right and most samples wrong."""
    greedy = mean_interval([result["measured"][-1][skill]["accuracy"] for result in seeds]).mean
    if greedy - sampled < 0.5:
        return []
    return [
        f"SFT is right in {greedy:.0%} of its greedy answers but only in {sampled:.1%} of its samples: after "
        "so few steps the right tokens are the most likely ones, but their probability is still low. All "
        "methods have the same number of steps."
    ]


def _curve(verdicts: Sequence[Sequence[int]]) -> list[float]:
    right = [[bool(x) for x in row] for row in verdicts]
    return [mean_pass_at_k(right, k) for k in KS]


def _gained(comparison: Comparison) -> list[int]:
    """Return the demonstration's effect on each test item: 1 became right, -1 became wrong, 0 no change."""
    pairs = [
        zip(
            comparison.base["teacher"][skill]["correct"],
            comparison.base["student"][skill]["correct"],
            strict=True,
        )
        for skill in next(iter(comparison.outcomes.values()))
    ]
    return [after - before for items in pairs for after, before in items]


def optimality(lab: Lab) -> Report:
    """Compare the teacher with SFT; a good teacher is accurate and close to the base model."""
    comparison = compare(lab, lists(), [SDFT, SFT])
    teacher = {"new": comparison.before("new", "teacher"), "kl": comparison.before("kl_new", "teacher")}
    points = {
        label: (comparison.estimate(label, "kl_new").mean, comparison.estimate(label, "new").mean)
        for label in comparison.outcomes
    }
    points |= {"teacher": (teacher["kl"], teacher["new"]), "base": (0.0, comparison.before("new"))}
    checks = [
        Check(
            "the teacher's accuracy above the base's, interval over items",
            mean_interval(_gained(comparison)),
            "100 against 42",
        ),
        Check(
            "the SFT model further from the base than the teacher",
            mean_interval([x - teacher["kl"] for x in comparison.values("SFT", "kl_new")]),
            "1.26 against 0.68 nats",
            "nats per token",
            1.0,
        ),
        Check(
            "the SDFT model nearer to the base than the SFT model",
            difference_interval(comparison.values("SFT", "kl_new"), comparison.values("SDFT", "kl_new")),
            "",
            "nats per token",
            1.0,
            claimed=False,
        ),
    ]
    return Report(
        "optimality",
        "Is the demonstration-conditioned model a good teacher?",
        "The model with the demonstration in context is right on all tool-use prompts (42 % without it), at "
        "0.68 nats from the base model; the SFT model is at 1.26 nats.",
        checks,
        table(comparison, COLUMNS),
        lambda path, caption: plot_lines(
            [Line(label, [x], [100 * y]) for label, (x, y) in points.items()],
            path,
            caption,
            axes=Axes("KL to base on prompts of the new skill (nats a token)", "new skill, accuracy (%)"),
        ),
        comparison.sweep,
        [
            "KL(model || base) is in nats per token on each model's own greedy answers; the prompt of the "
            "base model has no demonstration. The teacher, the base model with the demonstration in "
            "context, is measured once because it does not depend on a seed."
        ],
    )
