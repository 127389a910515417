"""`sdft continual` as the command line gives it, from the check before to the pictures after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from sdft_jax.config import Config, to_dict
from sdft_jax.continual.arms import Measured, Plan, make_plan, measure_base, run_arm
from sdft_jax.continual.stages import PRIOR, arms_of, scientific
from sdft_jax.continual.summary import (
    ceilings,
    chosen_rates,
    curve,
    mean,
    points,
    sequence_curves,
    stage_starts,
    summarise,
)
from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import plot_pareto, plot_sequence
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training import checkpoint
from sdft_jax.training.bucket import is_remote

EXTENDABLE = ("continual.methods", "continual.learning_rates", "continual.seeds")
"""Keys that may change between a run and its resumption besides `checkpoint.RESUMABLE`: arms may be added."""


def run(config: Config) -> dict[str, Any]:
    """All arms through all stages; writes continual.json and the pictures, and returns the former.

    Raises:
        SdftError: a mistake in the configuration or the data of any stage, before anything is trained.
    """
    if is_remote(config.output):
        raise SdftError(
            f"output={config.output}: stages hand models on through a local disk: give a local directory, "
            "and copy it to the bucket afterwards."
        )
    console = Console()
    active = jax.process_index() == 0
    arms = arms_of(config)
    plan = make_plan(config, [arm.method for arm in arms], active)
    checkpoint.claim(config.output, to_dict(config), (*checkpoint.RESUMABLE, *EXTENDABLE))
    base = measure_base(plan)
    tasks = [stage.name for stage in plan.stages if stage.name in base["student"]]
    if active:
        for sentence in [*_dropped(plan), *ceilings(tasks, base)]:
            console.print(sentence, highlight=False)
    sweep = bool(config.continual.learning_rates)
    found = []
    for number, arm in enumerate(arms):
        if active:
            console.print(f"[bold]{arm.name}[/] ({number + 1} of {len(arms)})", highlight=False)
        measured = run_arm(plan, arm, sweep)
        found.append(summarise(arm, tasks, base["student"], measured) | {"curve": curve(plan, arm)})
    report = {"tasks": tasks, "base": _brief(base), "arms": found, "hardware": describe_hardware()}
    if active:
        _conclude(console, config, report)
    return report


def _dropped(plan: Plan) -> list[str]:
    """What was left out of each stage's data, by method where it differs."""
    lines = {
        f"{stage.name}: dropped {prepared.dropped.total} rows: {prepared.dropped}.": None
        for stages in plan.prepared.values()
        for stage, prepared in zip(plan.stages, stages, strict=True)
        if prepared.dropped.total
    }
    return list(lines)


def _brief(base: Mapping[str, Measured]) -> dict[str, Any]:
    """The base model's numbers without every item."""
    kept = ("accuracy", "length", "kl_to_base")
    return {
        role: {name: {key: found[key] for key in kept} for name, found in measured.items()}
        for role, measured in base.items()
    }


def _conclude(console: Console, config: Config, report: Mapping[str, Any]) -> None:
    output, arms = Path(config.output), report["arms"]
    (output / "continual.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    chosen = chosen_rates(arms)
    caption = f"Measured on {report['hardware']}."
    pictures = (
        {"new against prior skills": output / "pareto.png"} if PRIOR in report["base"]["student"] else {}
    )
    if pictures:
        plot_pareto(
            points(arms, chosen),
            output / "pareto.png",
            caption,
            base=(report["base"]["student"][PRIOR]["accuracy"], mean(arms[0]["accuracy"][0]) or 0.0),
        )
    best = [arm for arm in arms if arm["learning_rate"] == chosen[arm["method"]] and arm["curve"]]
    if curves := sequence_curves(best):
        marks = {arm["method"]: stage_starts(arm["curve"]) for arm in best}
        plot_sequence(curves, output / "accuracy.png", caption, stages=marks)
        pictures["accuracy over steps"] = output / "accuracy.png"
    console.print(summary_table([_table_row(arm) for arm in arms], "After the last stage, greedy"))
    console.print()
    console.print(summary_table(_matrix_rows(arms, chosen), "Accuracy after each stage, mean over seeds"))
    console.print(
        "BWT: mean change of earlier tasks since their own stage; -/+: prior items forgotten and gained "
        "since the base (McNemar's test of them is in the JSON); KL: KL(model || base) on prior prompts, "
        "nats a token.",
        highlight=False,
    )
    for what, path in ({"everything": output / "continual.json"} | pictures).items():
        console.print(f"{what:<25} {path}", highlight=False, soft_wrap=True)


def _table_row(arm: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": arm["method"]}
    row |= (
        {} if arm["method"] == "oracle" else {"rate": scientific(arm["learning_rate"]), "seed": arm["seed"]}
    )
    row |= dict(zip(arm["tasks"], arm["accuracy"][-1], strict=True))
    row |= arm["suites"] | {
        "mean": arm["average_accuracy"],
        "prior": arm["prior"][-1] if arm["prior"] else None,
    }
    if retention := arm.get("retention"):
        row["BWT"] = retention["backward_transfer"]
        if items := retention["prior_since_base"]:
            row["-/+"] = f"{items['forgotten']}/{items['gained']}"
    return row | {"KL": arm["kl_to_base"][-1]}


def _matrix_rows(arms: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]) -> list[dict[str, Any]]:
    """The accuracy matrix of each method at its chosen learning rate: a row a stage, a column a task."""
    rows: list[dict[str, Any]] = []
    for method, rate in chosen.items():
        members = [arm for arm in arms if (arm["method"], arm["learning_rate"]) == (method, rate)]
        tasks, after = members[0]["tasks"], len(members[0]["accuracy"]) - 1
        untrained = method == "oracle"  # every stage's row is the same
        for number in range(0 if not rows else after if untrained else 1, after + 1):
            means = [mean([arm["accuracy"][number][task] for arm in members]) for task in range(len(tasks))]
            prior = mean([arm["prior"][number] for arm in members]) if members[0]["prior"] else None
            name = (
                "before" if not number else method if untrained or after == 1 else f"{method}, stage {number}"
            )
            rows.append({"": name} | dict(zip(tasks, means, strict=True)) | {"prior": prior})
    return rows
