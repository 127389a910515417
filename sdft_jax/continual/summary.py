"""The results of a continual run: JSON of each arm, points and curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sdft_jax.continual.arms import VALIDATION, Measured, Plan
from sdft_jax.continual.forgetting import by_skill, measure_retention, normalize
from sdft_jax.continual.stages import PRIOR, Arm, arm_stages, scientific, stage_directory
from sdft_jax.reporting.charts import Point, TaskCurve
from sdft_jax.reporting.sinks import read_jsonl
from sdft_jax.reporting.statistics import mean_interval


def ceilings(tasks: Sequence[str], base: Mapping[str, Measured]) -> list[str]:
    """Return a sentence per task: the base model's accuracy alone and with the demonstration in context."""
    sentences = []
    for task in (task for task in tasks if task in base.get("teacher", {})):
        alone, in_context = (base[role][task]["accuracy"] for role in ("student", "teacher"))
        sentence = (
            f"{task}: the base model's accuracy is {alone:.3f}, and {in_context:.3f} with the demonstration "
            "in context"
        )
        if in_context <= alone:
            sentence += (
                ": the demonstration does not help, so self-distillation has nothing to teach; "
                "use better demonstrations, a larger model, or SFT"
            )
        sentences.append(sentence + ".")
    return sentences


def summarize(arm: Arm, tasks: Sequence[str], base: Measured, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the results of one arm as JSON.

    Args:
        arm: the method, learning rate and seed.
        tasks: the names of the stages' tasks, in order.
        base: the results before training.
        measured: the results after each stage.
    """
    rows = [base, *measured]
    matrix = [[row[task]["accuracy"] for task in tasks] for row in rows]
    prior = [row[PRIOR]["accuracy"] for row in rows] if PRIOR in base else None
    summary: dict[str, Any] = {
        "method": arm.method.name,
        "learning_rate": arm.learning_rate,
        "seed": arm.seed,
        "name": arm.name,
        "tasks": list(tasks),
        "accuracy": matrix,
        "prior": prior,
        "kl_to_base": [row.get(PRIOR, {}).get("kl_to_base") for row in measured],
        "kl_to_base_tasks": [[row[task]["kl_to_base"] for task in tasks] for row in measured],
        "length": [[row[task]["length"] for task in tasks] for row in rows],
        "average_accuracy": sum(matrix[-1]) / len(tasks),
        "validation": mean(
            [x["accuracy"] for name, x in measured[-1].items() if name.startswith(VALIDATION)]
        ),
        "suites": {name: measured[-1][name]["accuracy"] for name in base if _is_suite(name, tasks)},
    }
    if skills := base.get(PRIOR, {}).get("skills"):
        summary["skills"] = {
            moment: by_skill(row[PRIOR]["correct"], skills)
            for moment, row in (("base", base), ("end", rows[-1]))
        }
    if len(measured) == len(tasks):
        verdicts = [[row[task]["correct"] for task in tasks] for row in rows]
        prior_verdicts = [row[PRIOR]["correct"] for row in rows] if prior else None
        retention = measure_retention(tasks, matrix, prior, verdicts, prior_verdicts)
        summary["retention"] = dataclasses.asdict(retention)
    return summary


def _is_suite(name: str, tasks: Sequence[str]) -> bool:
    return name not in tasks and name != PRIOR and not name.startswith(VALIDATION)


def curve(plan: Plan, arm: Arm) -> list[dict[str, Any]]:
    """Return the evaluations of all stages: step (counted across stages), stage, tasks and prior skills."""
    rows: list[dict[str, Any]] = []
    steps_before = 0
    for number, stage in enumerate(arm_stages(arm, plan.stages)):
        file = stage_directory(plan.config, arm, number, stage).evaluations
        evaluations = read_jsonl(file) if file.is_file() else []
        for row in evaluations:
            tasks = {name.partition("/")[2]: x for name, x in row.items() if name.startswith("accuracy/")}
            own = {stage.name: row["accuracy"]} if "accuracy" in row else {}
            others = {key: row[key] for key in (PRIOR, "kl_to_base", "length") if key in row}
            step = steps_before + row["step"]
            rows.append({"step": step, "stage": stage.name, "tasks": own | tasks, **others})
        steps_before += max((row["step"] for row in evaluations), default=0)
    return rows


def chosen_rates(arms: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return for each method the learning rate with the best mean score over seeds; the lower one of a tie.

    The score is the accuracy on the validation rows, or on the tasks if the stages have no validation rows.
    """
    scores: dict[str, dict[float, list[float]]] = {}
    for arm in arms:
        score = arm["average_accuracy"] if arm["validation"] is None else arm["validation"]
        scores.setdefault(arm["method"], {}).setdefault(arm["learning_rate"], []).append(score)
    return {
        method: min(rates, key=lambda rate: (-sum(rates[rate]) / len(rates[rate]), rate))
        for method, rates in scores.items()
    }


def points(arms: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]) -> list[Point]:
    """Return a point per method and learning rate: new against prior skills, as means with intervals."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for arm in arms:
        groups.setdefault((arm["method"], arm["learning_rate"]), []).append(arm)
    chart = []
    for (method, rate), members in groups.items():
        prior = mean_interval([arm["prior"][-1] for arm in members])
        new = mean_interval([arm["average_accuracy"] for arm in members])
        chart.append(
            Point(
                method,
                prior.mean,
                new.mean,
                scientific(rate),
                prior.half,
                new.half,
                rate == chosen.get(method),
            )
        )
    return chart


def sequence_curves(arms: Sequence[Mapping[str, Any]]) -> list[TaskCurve]:
    """Return each task over steps, scaled to 0 for the base and 1 for the best method (paper, Figure 3)."""
    curves = []
    for number, task in enumerate(arms[0]["tasks"] if arms else []):
        seeds = {
            method: [_series(arm, task) for arm in arms if arm["method"] == method]
            for method in dict.fromkeys(arm["method"] for arm in arms)
        }
        if not all(series for rows in seeds.values() for series in rows):
            continue  # not evaluated during training
        steps = {
            method: sorted({step for series in rows for step, _ in series}) for method, rows in seeds.items()
        }
        normalized = normalize(
            {method: [_on(steps[method], series) for series in rows] for method, rows in seeds.items()},
            arms[0]["accuracy"][0][number],
        )
        curves += [
            TaskCurve(method, task, steps[method], values.tolist()) for method, values in normalized.items()
        ]
    return curves


def _on(steps: Sequence[int], series: Sequence[tuple[int, float]]) -> list[float]:
    """Return the last known value at each step; a seed that stopped early keeps its last value."""
    return [next((y for at, y in reversed(series) if at <= step), series[0][1]) for step in steps]


def _series(arm: Mapping[str, Any], task: str) -> list[tuple[int, float]]:
    """Return (step, accuracy) in order; the boundary of two stages is evaluated twice but counts once."""
    return sorted({row["step"]: row["tasks"][task] for row in arm["curve"] if task in row["tasks"]}.items())


def stage_starts(curve: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """Return (first step, name) of each stage."""
    first: dict[str, float] = {}
    for row in curve:
        first.setdefault(row["stage"], row["step"])
    return [(step, name) for name, step in first.items()]


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None if there are no values."""
    return sum(values) / len(values) if values else None
