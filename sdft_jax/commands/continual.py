"""`sdft continual`: train a model on a sequence of stages by several methods, and measure forgetting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config import Config, to_dict
from sdft_jax.continual.arms import Measured, Plan, make_plan, measure_base, run_arm
from sdft_jax.continual.stages import PRIOR, Arm, arms_of, scientific
from sdft_jax.continual.summary import (
    ceilings,
    chosen_rates,
    curve,
    mean,
    points,
    sequence_curves,
    stage_starts,
    summarize,
)
from sdft_jax.errors import SdftError
from sdft_jax.files import write_errors, write_text
from sdft_jax.reporting.charts import Point, plot_pareto, plot_sequence
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.reporter import Reporter, process_reporter
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training.run_directory import RESUMABLE, RunDirectory

EXTENDABLE = ("continual.methods", "continual.learning_rates", "continual.seeds")
"""Additional keys that may differ between a run and its resumption, since arms may be added."""


def run(config: Config) -> dict[str, Any]:
    """Train all stages of all arms, write continual.json and the figures, and return the JSON's content.

    Raises:
        SdftError: a mistake in the configuration or the data of any stage, before anything is trained.
    """
    directory = RunDirectory(config.output)
    if directory.is_remote:
        raise SdftError(
            f"output={config.output} is a bucket, and a stage reads its model from a local disk: give a "
            "local directory, and copy it to the bucket afterwards."
        )
    reporter = process_reporter()
    arms = arms_of(config)
    plan = make_plan(config, [arm.method for arm in arms], reporter)
    with directory.claimed(to_dict(config), (*RESUMABLE, *EXTENDABLE)):
        return _run(plan, arms)


def _run(plan: Plan, arms: Sequence[Arm]) -> dict[str, Any]:
    """Run all arms in a directory that this run owns."""
    config, reporter, directory = plan.config, plan.reporter, RunDirectory(plan.config.output)
    base = measure_base(plan)
    tasks = [stage.name for stage in plan.stages if stage.name in base["student"]]
    reporter.print(*_dropped(plan), *ceilings(tasks, base))
    sweep = bool(config.continual.learning_rates)
    summaries = []
    for number, arm in enumerate(arms):
        reporter.heading(arm.name, f" ({number + 1} of {len(arms)})")
        measured = run_arm(plan, arm, sweep)
        summaries.append(summarize(arm, tasks, base["student"], measured) | {"curve": curve(plan, arm)})
    report = {"tasks": tasks, "base": _brief(base), "arms": summaries, "hardware": describe_hardware()}
    if reporter.writes:
        untrained = {arm.method.name for arm in arms if not arm.method.trains}
        _conclude(reporter, directory, report, untrained)
    return report


def _dropped(plan: Plan) -> list[str]:
    """Return a sentence per stage with dropped rows, or several if methods drop different rows."""
    lines = {
        f"{stage.name}: dropped {inputs.dropped.total} rows: {inputs.dropped}.": None
        for stages in plan.inputs.values()
        for stage, inputs in zip(plan.stages, stages, strict=True)
        if inputs.dropped.total
    }
    return list(lines)


def _brief(base: Mapping[str, Measured]) -> dict[str, Any]:
    """Return the base model's results without the results of individual rows."""
    names = ("accuracy", "length", "kl_to_base")
    return {
        role: {task: {name: result[name] for name in names} for task, result in measured.items()}
        for role, measured in base.items()
    }


def _conclude(
    reporter: Reporter, directory: RunDirectory, report: Mapping[str, Any], untrained: set[str]
) -> None:
    arms = report["arms"]
    chosen = chosen_rates(arms)
    reporter.print(
        summary_table([_table_row(arm, untrained) for arm in arms], "Accuracy after the last stage, greedy"),
        "",
        summary_table(_matrix_rows(arms, chosen, untrained), "Accuracy after each stage, mean over seeds"),
        "BWT: mean change of earlier tasks since their own stage; -/+: prior items forgotten and gained "
        "since the base (McNemar's test is in the JSON); KL: KL(model || base) on prior prompts, nats per "
        "token.",
    )
    results = directory.local / "continual.json"
    with write_errors(results, "fix this and run the same command again"):
        write_text(results, json.dumps(report, indent=1))
    files = {"all results": results} | _draw(reporter, directory.local, report, chosen)
    reporter.print(*(f"{name:<25} {path}" for name, path in files.items()))


def _draw(
    reporter: Reporter, output: Path, report: Mapping[str, Any], chosen: Mapping[str, float]
) -> dict[str, Path]:
    """Write the figures, and return their paths by title."""
    arms, caption, files = report["arms"], f"Measured on {report['hardware']}.", {}
    if PRIOR in report["base"]["student"]:
        file = files["new against prior skills"] = output / "pareto.png"
        prior = report["base"]["student"][PRIOR]["accuracy"]
        before = Point("base model", prior, mean(arms[0]["accuracy"][0]) or 0.0)
        with reporter.tolerating(file):
            plot_pareto(points(arms, chosen), file, caption, base=before)
    best = [arm for arm in arms if arm["learning_rate"] == chosen[arm["method"]] and arm["curve"]]
    file = output / "accuracy.png"
    with reporter.tolerating(file):
        if curves := sequence_curves(best):
            files["accuracy over steps"] = file
            marks = {arm["method"]: stage_starts(arm["curve"]) for arm in best}
            plot_sequence(curves, file, caption, stages=marks)
    return files


def _table_row(arm: Mapping[str, Any], untrained: set[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": arm["method"]}
    if arm["method"] not in untrained:
        row |= {"rate": scientific(arm["learning_rate"]), "seed": arm["seed"]}
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


def _matrix_rows(
    arms: Sequence[Mapping[str, Any]], chosen: Mapping[str, float], untrained: set[str]
) -> list[dict[str, Any]]:
    """Return the accuracy matrix of each method at its chosen rate: a row per stage, a column per task."""
    rows: list[dict[str, Any]] = []
    for method, rate in chosen.items():
        members = [arm for arm in arms if (arm["method"], arm["learning_rate"]) == (method, rate)]
        tasks, last = members[0]["tasks"], len(members[0]["accuracy"]) - 1
        single = method in untrained or last == 1  # the rows of an untrained method are all the same
        first = 0 if not rows else last if method in untrained else 1
        for number in range(first, last + 1):
            means = [mean([arm["accuracy"][number][task] for arm in members]) for task in range(len(tasks))]
            prior = mean([arm["prior"][number] for arm in members]) if members[0]["prior"] else None
            name = "before" if not number else method if single else f"{method}, stage {number}"
            rows.append({"": name} | dict(zip(tasks, means, strict=True)) | {"prior": prior})
    return rows
