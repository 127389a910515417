"""New list skills: one at a time (the paper's Table 5) and three in sequence (its Figure 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sdft_jax.config.methods import method_named
from sdft_jax.continual.forgetting import backward_transfer
from sdft_jax.continual.stages import PRIOR, scientific
from sdft_jax.continual.summary import sequence_curves
from sdft_jax.reporting.charts import Point, TaskCurve, plot_pareto, plot_sequence
from sdft_jax.reporting.statistics import difference_interval, mean_interval
from sdft_jax.studies.lab.lab import Comparison, Lab, Variant, compare, each_seed, sweep
from sdft_jax.studies.lab.reports import COLUMNS, RATE, Check, Report, exceeds, share, table
from sdft_jax.studies.lab.worlds import lists

SDFT, SFT = Variant("SDFT"), Variant("SFT", "sft")
BASELINES = (SFT, Variant("DFT", "dft"), Variant("SFT + re-invoke", "reinvoke"))
PAPER_TABLE_5 = {
    ("SDFT", "new"): "70.2, 70.6, 40.2",
    ("SFT", "new"): "66.2, 63.2, 35.5",
    ("DFT", "new"): "54.8, 64.2, 36.2",
    ("SFT + re-invoke", "new"): "66.0, 63.1, 35.6",
    ("SDFT", "prior"): "64.5, 65.4, 65.4",
    ("SFT", "prior"): "53.4, 56.0, 60.2",
    ("DFT", "prior"): "60.2, 60.8, 64.0",
    ("SFT + re-invoke", "prior"): "60.2, 63.7, 62.6",
}


def skill(lab: Lab) -> Report:
    """Compare SDFT with SFT, DFT and SFT + re-invoke on three skills, each learned separately."""
    world = lists()
    comparison = compare(lab, world, [SDFT, *BASELINES], world.skills[: 1 if lab.quick else None])
    checks = [
        exceeds(
            comparison,
            field,
            "SDFT",
            other.label,
            f"SDFT above {other.label} on {name}",
            f"{PAPER_TABLE_5['SDFT', field]} against {PAPER_TABLE_5[other.label, field]}",
        )
        for field, name in (("new", "the new skill"), ("prior", "prior skills"))
        for other in BASELINES
    ]
    return Report(
        "skill",
        "A new skill and its effect on the old skills",
        "SDFT is above SFT, DFT and SFT + re-invoke on the new task and on prior skills, in science, tool "
        "use and medicine (Table 5).",
        checks,
        table(comparison, COLUMNS),
        lambda path, caption: plot_pareto(
            pareto(comparison),
            path,
            f"{caption} One run a point, on validation rows.",
            base=Point("base model", prior=comparison.before("prior"), new=comparison.before("new")),
            teacher=comparison.before("new", "teacher"),
        ),
        comparison.sweep,
        [
            f"The table has means over the skills {', '.join(next(iter(comparison.outcomes.values())))} and "
            f"over {seeds_in_words(lab)}, on the test. The picture shows the sweep on validation rows of "
            "the first skill, one run per point; large points are the chosen rates. The star and the dashed "
            "line are the base model on the test, without and with the demonstration in context.",
            *_idle(comparison),
        ],
    )


def _idle(comparison: Comparison) -> list[str]:
    """Explain why a method that learned nothing is not below SDFT on prior skills."""
    if comparison.estimate("DFT", "new").mean > 0.01:
        return []
    return [
        "DFT learned nothing at any rate, so the chosen rate is the one that forgets least. DFT weights the "
        "loss of each token by the token's own probability, and the base model gives the first tokens of the "
        "expert's style almost no probability."
    ]


def seeds_in_words(lab: Lab) -> str:
    """Return the number of seeds in words: `one seed` or `3 seeds`."""
    return "one seed" if len(lab.seeds) == 1 else f"{len(lab.seeds)} seeds"


def pareto(comparison: Comparison) -> list[Point]:
    """Return the sweep as points: new against prior accuracy at each learning rate."""
    return [
        Point(row.label, row.prior, row.new, scientific(row.rate), chosen=row.chosen)
        for row in comparison.sweep
    ]


def sequential(lab: Lab) -> Report:
    """Train three skills in sequence and measure how much of each remains."""
    world = lists()
    skills = world.skills[: 2 if lab.quick else None]
    variants = [SDFT, SFT, Variant("joint SFT", "joint", rate_of="SFT")]
    rates, swept = sweep(lab, world, variants, skills[0])
    # Measure all tasks twice per stage; joint SFT has no stages to draw.
    watched = {"train": {"eval_every": max(lab.steps(world) // 2, 1)}}
    watched_variants = [
        v if method_named(v.method).joint else dataclasses.replace(v, changes=watched) for v in variants
    ]
    base, results = each_seed(lab, world, watched_variants, rates, skills, "sequential")
    before = base["measured"]["student"]
    means = {label: [_mean_accuracy(x, skills) for x in seeds] for label, seeds in results.items()}
    transfer = {label: [_transfer(before, x, skills) for x in results[label]] for label in ("SDFT", "SFT")}
    prior = {label: [x["measured"][-1][PRIOR]["accuracy"] for x in seeds] for label, seeds in results.items()}
    checks = [
        Check(
            "SDFT above SFT in mean accuracy after the last stage",
            difference_interval(means["SDFT"], means["SFT"]),
        ),
        Check(
            "SDFT above SFT in backward transfer",
            difference_interval(transfer["SDFT"], transfer["SFT"]),
            "tool use, normalized: .93 to .83 under SDFT, .77 to below -.6 under SFT",
        ),
        Check("SDFT above SFT on prior skills at the end", difference_interval(prior["SDFT"], prior["SFT"])),
    ]
    rows = [{"": "base", RATE: "–"} | {x: share_of([before[x]["accuracy"]]) for x in (*skills, PRIOR)}]
    rows += [
        {"": label, RATE: scientific(rates[label])}
        | {name: share_of([x["measured"][-1][name]["accuracy"] for x in seeds]) for name in (*skills, PRIOR)}
        | {"mean of skills": share_of(means[label])}
        | ({"backward transfer": share_of(transfer[label])} if label in transfer else {})
        for label, seeds in results.items()
    ]
    curves = {label: results[label] for label in ("SDFT", "SFT")}
    starts = [(float(i * lab.steps(world)), name) for i, name in enumerate(skills)]
    return Report(
        "sequential",
        "Skills in sequence",
        "SDFT accumulates skills; SFT loses each skill when training on the next one begins (Figure 3).",
        checks,
        rows,
        lambda path, caption: plot_sequence(_curves(curves, before, skills), path, caption, stages=starts),
        swept,
        [
            "Accuracy is in percent, after the last stage. Backward transfer is the mean change, in points, "
            "of the earlier skills since the end of their own stages. Joint SFT trains on the "
            "demonstrations of all stages at once, for as many steps as all stages together: it is the "
            "upper bound for a sequence. Learning rates are chosen on the first skill alone, for which "
            "joint SFT is the same as SFT. In the picture, 0 is the base model and 1 the best accuracy of "
            "either method."
        ],
    )


def share_of(values: Sequence[float]) -> str:
    """Format the mean as percent, with its interval."""
    return share(mean_interval(values))


def _mean_accuracy(result: dict[str, Any], skills: Sequence[str]) -> float:
    return sum(result["measured"][-1][name]["accuracy"] for name in skills) / len(skills)


def _transfer(before: dict[str, Any], result: dict[str, Any], skills: Sequence[str]) -> float:
    rows = [[row[name]["accuracy"] for name in skills] for row in (before, *result["measured"])]
    change = backward_transfer(rows)
    assert change is not None
    return change


def _curves(
    results: dict[str, list[dict[str, Any]]], before: dict[str, Any], skills: Sequence[str]
) -> list[TaskCurve]:
    """Return the accuracy of every skill over the steps of all stages, as `sdft continual` draws it."""
    start = [before[name]["accuracy"] for name in skills]
    return sequence_curves(
        [
            {"method": label, "tasks": skills, "accuracy": [start], "curve": result["curve"]}
            for label, seeds in results.items()
            for result in seeds
        ]
    )
