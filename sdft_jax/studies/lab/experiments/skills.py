"""New list skills: one at a time (the paper's Table 5), and three in turn (its Figure 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

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
    """SDFT against SFT, DFT and SFT + re-invoke on three skills, each learned alone."""
    world = lists()
    found = compare(lab, world, [SDFT, *BASELINES], world.skills[: 1 if lab.quick else None])
    checks = [
        exceeds(
            found,
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
        "A new skill, and what it costs the old ones",
        "SDFT is above SFT, DFT and SFT + re-invoke on the new task and on prior skills, in science, tool "
        "use and medicine (Table 5).",
        checks,
        table(found, COLUMNS),
        lambda path, caption: plot_pareto(
            pareto(found),
            path,
            f"{caption} One run a point, on validation rows.",
            base=(found.before("prior"), found.before("new")),
            teacher=found.before("new", "teacher"),
        ),
        found.sweep,
        [
            f"The table is the test: means over the skills {', '.join(next(iter(found.outcomes.values())))} "
            f"and over {seeds_in_words(lab)}. The picture is the choice: the sweep on validation rows of "
            "the first skill, one run a point, large where the rate was chosen; its star and its dashed "
            "line are the base model on the test.",
            *_idle(found),
        ],
    )


def _idle(found: Comparison) -> list[str]:
    """Why a method that learned nothing is not below SDFT on prior skills."""
    if found.estimate("DFT", "new").mean > 0.01:
        return []
    return [
        "DFT learned nothing at any rate, and so forgot nothing: it weights each token's loss by the "
        "token's own probability, and the first tokens of the expert's style have next to none under the "
        "base model."
    ]


def seeds_in_words(lab: Lab) -> str:
    """`one seed` or `3 seeds`."""
    return "one seed" if len(lab.seeds) == 1 else f"{len(lab.seeds)} seeds"


def pareto(found: Comparison) -> list[Point]:
    """The sweep: new skill against prior skills at each learning rate."""
    return [
        Point(row.label, row.prior, row.new, scientific(row.rate), chosen=row.chosen) for row in found.sweep
    ]


def sequential(lab: Lab) -> Report:
    """Three skills in turn: what is kept of each."""
    world = lists()
    skills = world.skills[: 2 if lab.quick else None]
    variants = [SDFT, SFT, Variant("joint SFT", "joint", rate_of="SFT")]
    rates, swept = sweep(lab, world, variants, skills[0])
    # All tasks are measured twice in a stage; of joint there are no stages to draw.
    watched = {"train": {"eval_every": max(lab.steps(world) // 2, 1)}}
    drawn = [v if v.method == "joint" else dataclasses.replace(v, changes=watched) for v in variants]
    base, found = each_seed(lab, world, drawn, rates, skills, "sequential")
    before = base["measured"]["student"]
    means = {label: [_mean_accuracy(x, skills) for x in seeds] for label, seeds in found.items()}
    transfer = {label: [_transfer(before, x, skills) for x in found[label]] for label in ("SDFT", "SFT")}
    prior = {label: [x["measured"][-1][PRIOR]["accuracy"] for x in seeds] for label, seeds in found.items()}
    checks = [
        Check(
            "SDFT above SFT in mean accuracy after the last stage",
            difference_interval(means["SDFT"], means["SFT"]),
        ),
        Check(
            "SDFT above SFT in backward transfer",
            difference_interval(transfer["SDFT"], transfer["SFT"]),
            "tool use, normalised: .93 to .83 under SDFT, .77 to below -.6 under SFT",
        ),
        Check("SDFT above SFT on prior skills at the end", difference_interval(prior["SDFT"], prior["SFT"])),
    ]
    rows = [{"": "base", RATE: "–"} | {x: share_of([before[x]["accuracy"]]) for x in (*skills, PRIOR)}]
    rows += [
        {"": label, RATE: scientific(rates[label])}
        | {name: share_of([x["measured"][-1][name]["accuracy"] for x in seeds]) for name in (*skills, PRIOR)}
        | {"mean of skills": share_of(means[label])}
        | ({"backward transfer": share_of(transfer[label])} if label in transfer else {})
        for label, seeds in found.items()
    ]
    curves = {label: found[label] for label in ("SDFT", "SFT")}
    starts = [(float(i * lab.steps(world)), name) for i, name in enumerate(skills)]
    return Report(
        "sequential",
        "Skills in turn",
        "SDFT accumulates skills, SFT loses each when the next begins (Figure 3).",
        checks,
        rows,
        lambda path, caption: plot_sequence(_curves(curves, before, skills), path, caption, stages=starts),
        swept,
        [
            "Accuracy in percent after the last stage. Backward transfer: mean change, in points, of the "
            "earlier skills since the end of their own stages. Joint SFT sees the demonstrations of all "
            "stages at once, in as many steps as all stages together: the ceiling of a sequence. Rates are "
            "chosen on the first skill alone, where joint SFT is SFT. In the picture 0 is the base model and "
            "1 the best of either method."
        ],
    )


def share_of(values: Sequence[float]) -> str:
    """Mean in percent with its interval."""
    return share(mean_interval(values))


def _mean_accuracy(result: dict[str, Any], skills: Sequence[str]) -> float:
    return sum(result["measured"][-1][name]["accuracy"] for name in skills) / len(skills)


def _transfer(before: dict[str, Any], result: dict[str, Any], skills: Sequence[str]) -> float:
    rows = [[row[name]["accuracy"] for name in skills] for row in (before, *result["measured"])]
    change = backward_transfer(rows)
    assert change is not None
    return change


def _curves(
    found: dict[str, list[dict[str, Any]]], before: dict[str, Any], skills: Sequence[str]
) -> list[TaskCurve]:
    """Every skill over the steps of all stages, as `sdft continual` draws it."""
    start = [before[name]["accuracy"] for name in skills]
    return sequence_curves(
        [
            {"method": label, "tasks": skills, "accuracy": [start], "curve": result["curve"]}
            for label, seeds in found.items()
            for result in seeds
        ]
    )
