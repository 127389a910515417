"""Beyond greedy accuracy: pass@k, and how far a model went from the base for what it gained."""

from __future__ import annotations

from collections.abc import Sequence

from sdft_jax.reporting.charts import Line, plot_lines
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
    """The unbiased estimate of pass@k for the base model, SFT and SDFT."""
    world, drawn = lists(), {"n": max(KS), "prompts": 32 if lab.quick else 64}
    skill = world.skills[0]
    rates, swept = sweep(lab, world, [SDFT, SFT], skill)
    base, found = each_seed(lab, world, [SDFT, SFT], rates, [skill], "pass@k", pass_at_k=drawn)
    curves = {
        label: [_curve(result["verdicts"]) for result in seeds]
        for label, seeds in (found | {"base": [base]}).items()
    }
    means = {
        label: [mean_interval(column) for column in zip(*seeds, strict=True)]
        for label, seeds in curves.items()
    }
    before = curves["base"][0]
    told = [(i, k) for i, k in enumerate(KS) if k in (1, 8, 128)]
    checks = [
        Check(
            f"SDFT above SFT at k={k}",
            difference_interval([c[i] for c in curves["SDFT"]], [c[i] for c in curves["SFT"]]),
            f"{PAPER_PASS_AT_K['SDFT'][i]} against {PAPER_PASS_AT_K['SFT'][i]}",
        )
        for i, k in told
    ] + [
        Check(
            f"SFT above the base at k={k}",
            mean_interval([c[i] - before[i] for c in curves["SFT"]]),
            f"{PAPER_PASS_AT_K['SFT'][i]} against {PAPER_PASS_AT_K['base'][i]}",
        )
        for i, k in told
    ]
    rows = [
        {"": label} | {f"k={k}": share(estimate) for k, estimate in zip(KS, estimates, strict=True)}
        for label, estimates in means.items()
    ]
    return Report(
        "pass@k",
        "pass@k",
        "SDFT is above SFT, and SFT above the base model, at every k up to 128: the gain is no mere "
        "sharpening.",
        checks,
        rows,
        lambda path, caption: plot_lines(
            [percent_line(label, KS, estimates) for label, estimates in means.items()],
            path,
            caption,
            x_label="k",
            y_label="pass@k (%)",
            log_x=True,
        ),
        swept,
        [
            f"The first {drawn['prompts']} prompts of the test, {drawn['n']} samples each at temperature 1 "
            "and top-p 0.95; the unbiased estimate of Chen et al. (2021).",
            *_unsure(found["SFT"], skill, means["SFT"][0].mean),
        ],
    )


def _unsure(seeds: Sequence[Result], skill: str, sampled: float) -> list[str]:
    """Why a model may be right greedily and wrong when it samples."""
    greedy = mean_interval([result["measured"][-1][skill]["accuracy"] for result in seeds]).mean
    if greedy - sampled < 0.5:
        return []
    return [
        f"SFT is right in {greedy:.0%} of its greedy answers and in {sampled:.1%} of its samples: in so few "
        "steps it has learned which token is likeliest, and is far from sure of it. All methods have the "
        "same steps."
    ]


def _curve(verdicts: Sequence[Sequence[int]]) -> list[float]:
    right = [[bool(x) for x in row] for row in verdicts]
    return [mean_pass_at_k(right, k) for k in KS]


def _gained(found: Comparison) -> list[int]:
    """For each item of the test, what the demonstration changed: 1 right now, -1 wrong now."""
    pairs = [
        zip(found.base["teacher"][skill]["correct"], found.base["student"][skill]["correct"], strict=True)
        for skill in next(iter(found.outcomes.values()))
    ]
    return [after - before for items in pairs for after, before in items]


def optimality(lab: Lab) -> Report:
    """A teacher should be right and yet near the base model: its accuracy and its distance, against SFT's."""
    found = compare(lab, lists(), [SDFT, SFT])
    teacher = {"new": found.before("new", "teacher"), "kl": found.before("kl_new", "teacher")}
    points = {
        label: (found.estimate(label, "kl_new").mean, found.estimate(label, "new").mean)
        for label in found.outcomes
    }
    points |= {"teacher": (teacher["kl"], teacher["new"]), "base": (0.0, found.before("new"))}
    checks = [
        Check(
            "the teacher's accuracy above the base's, interval over items",
            mean_interval(_gained(found)),
            "100 against 42",
        ),
        Check(
            "the SFT model further from the base than the teacher",
            mean_interval([x - teacher["kl"] for x in found.values("SFT", "kl_new")]),
            "1.26 against 0.68 nats",
            "nats a token",
            1.0,
        ),
        Check(
            "the SDFT model nearer to the base than the SFT model",
            difference_interval(found.values("SFT", "kl_new"), found.values("SDFT", "kl_new")),
            "",
            "nats a token",
            1.0,
            claimed=False,
        ),
    ]
    return Report(
        "optimality",
        "Is the demonstration-conditioned model a good teacher?",
        "The model with the demonstration in context is right in all of the tool-use prompts (without it in "
        "42 %), 0.68 nats from the base, where the SFT model is 1.26 nats away.",
        checks,
        table(found, COLUMNS),
        lambda path, caption: plot_lines(
            [Line(label, [x], [100 * y]) for label, (x, y) in points.items()],
            path,
            caption,
            x_label="KL to base on prompts of the new skill (nats a token)",
            y_label="new skill, accuracy (%)",
        ),
        found.sweep,
        [
            "KL(model || base) in nats a token on each model's own greedy answers; the base model sees the "
            "plain prompt. The teacher, the base model with the demonstration in context, is measured "
            "once: it does not depend on a seed."
        ],
    )
