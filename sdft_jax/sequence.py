"""`sdft continual` as the command line gives it, from the check before to the pictures after."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from sdft_jax import checkpoint
from sdft_jax.config import Config, to_dict
from sdft_jax.continual import VALIDATION, Measured, Plan, make_plan, measure_base, run_arm
from sdft_jax.errors import SdftError
from sdft_jax.figures import Point, TaskCurve, plot_pareto, plot_sequence
from sdft_jax.mirror import is_remote
from sdft_jax.report import EVALUATIONS, hardware, read_jsonl, summary_table
from sdft_jax.retention import by_skill, measure_retention, normalise
from sdft_jax.stages import PRIOR, Arm, arms_of, directory_of, joined, scientific
from sdft_jax.statistics import mean_interval

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
    report = {"tasks": tasks, "base": _brief(base), "arms": found, "hardware": hardware()}
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


def ceilings(tasks: Sequence[str], base: Mapping[str, Measured]) -> list[str]:
    """What the demonstration in context is worth to the base model: whether there is anything to distill."""
    sentences = []
    for task in (task for task in tasks if task in base.get("teacher", {})):
        alone, shown = (base[role][task]["accuracy"] for role in ("student", "teacher"))
        sentence = f"{task}: the base model is right in {alone:.3f}, shown the demonstration in {shown:.3f}"
        if shown <= alone:
            sentence += (
                ": the demonstration does not help it, so that self-distillation has nothing to teach here; "
                "use better demonstrations, a larger model, or SFT"
            )
        sentences.append(sentence + ".")
    return sentences


def summarise(arm: Arm, tasks: Sequence[str], base: Measured, measured: Sequence[Measured]) -> dict[str, Any]:
    """Everything that one arm gave, as JSON.

    Args:
        arm: the way through the stages.
        tasks: names of the stages' tasks, in order.
        base: what was measured before.
        measured: and after each stage.
    """
    rows = [base, *measured]
    matrix = [[row[task]["accuracy"] for task in tasks] for row in rows]
    prior = [row[PRIOR]["accuracy"] for row in rows] if PRIOR in base else None
    found: dict[str, Any] = {
        **dataclasses.asdict(arm),
        "name": arm.name,
        "tasks": list(tasks),
        "accuracy": matrix,
        "prior": prior,
        "kl_to_base": [row.get(PRIOR, {}).get("kl_to_base") for row in measured],
        "kl_to_base_tasks": [[row[task]["kl_to_base"] for task in tasks] for row in measured],
        "length": [[row[task]["length"] for task in tasks] for row in rows],
        "average_accuracy": sum(matrix[-1]) / len(tasks),
        "validation": _mean(
            [x["accuracy"] for name, x in measured[-1].items() if name.startswith(VALIDATION)]
        ),
        "suites": {name: measured[-1][name]["accuracy"] for name in base if _is_suite(name, tasks)},
    }
    if skills := base.get(PRIOR, {}).get("skills"):
        found["skills"] = {
            moment: by_skill(row[PRIOR]["correct"], skills)
            for moment, row in (("base", base), ("end", rows[-1]))
        }
    if len(measured) == len(tasks):
        verdicts = [[row[task]["correct"] for task in tasks] for row in rows]
        prior_verdicts = [row[PRIOR]["correct"] for row in rows] if prior else None
        retention = measure_retention(tasks, matrix, prior, verdicts, prior_verdicts)
        found["retention"] = dataclasses.asdict(retention)
    return found


def _is_suite(name: str, tasks: Sequence[str]) -> bool:
    return name not in tasks and name != PRIOR and not name.startswith(VALIDATION)


def curve(plan: Plan, arm: Arm) -> list[dict[str, Any]]:
    """Accuracies over the steps of all stages: step (from the first stage on), stage, tasks, prior."""
    rows: list[dict[str, Any]] = []
    passed = 0
    for number, stage in enumerate((joined(plan.stages),) if arm.method == "joint" else plan.stages):
        file = directory_of(plan.config, arm, number, stage) / EVALUATIONS
        found = read_jsonl(file) if file.is_file() else []
        for row in found:
            tasks = {name.partition("/")[2]: x for name, x in row.items() if name.startswith("accuracy/")}
            here = {stage.name: row["accuracy"]} if "accuracy" in row else {}
            kept = {key: row[key] for key in (PRIOR, "kl_to_base", "length") if key in row}
            rows.append({"step": passed + row["step"], "stage": stage.name, "tasks": here | tasks, **kept})
        passed += max((row["step"] for row in found), default=0)
    return rows


def chosen_rates(arms: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each method the learning rate of the best mean score over seeds; the lower one of equals.

    The score is the accuracy on validation rows where the stages have any, else that on the tasks themselves.
    """
    scores: dict[str, dict[float, list[float]]] = {}
    for arm in arms:
        score = arm["average_accuracy"] if arm["validation"] is None else arm["validation"]
        scores.setdefault(arm["method"], {}).setdefault(arm["learning_rate"], []).append(score)
    return {
        method: min(rates, key=lambda rate: (-sum(rates[rate]) / len(rates[rate]), rate))
        for method, rates in scores.items()
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
            points(arms, chosen), output / "pareto.png", caption,
            base=(report["base"]["student"][PRIOR]["accuracy"], _mean(arms[0]["accuracy"][0]) or 0.0),
        )  # fmt: skip
    best = [arm for arm in arms if arm["learning_rate"] == chosen[arm["method"]] and arm["curve"]]
    if curves := sequence_curves(best):
        marks = {arm["method"]: _starts(arm["curve"]) for arm in best}
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
            means = [_mean([arm["accuracy"][number][task] for arm in members]) for task in range(len(tasks))]
            prior = _mean([arm["prior"][number] for arm in members]) if members[0]["prior"] else None
            name = (
                "before" if not number else method if untrained or after == 1 else f"{method}, stage {number}"
            )
            rows.append({"": name} | dict(zip(tasks, means, strict=True)) | {"prior": prior})
    return rows


def points(arms: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]) -> list[Point]:
    """New against prior skills: for each method and learning rate the mean over seeds with its interval."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for arm in arms:
        groups.setdefault((arm["method"], arm["learning_rate"]), []).append(arm)
    found = []
    for (method, rate), members in groups.items():
        prior = mean_interval([arm["prior"][-1] for arm in members])
        new = mean_interval([arm["average_accuracy"] for arm in members])
        found.append(
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
    return found


def sequence_curves(arms: Sequence[Mapping[str, Any]]) -> list[TaskCurve]:
    """The paper's Figure 3: every task over steps, 0 for the base model and 1 for the best of any method."""
    curves = []
    for number, task in enumerate(arms[0]["tasks"] if arms else []):
        seeds = {
            method: [_series(arm, task) for arm in arms if arm["method"] == method]
            for method in dict.fromkeys(arm["method"] for arm in arms)
        }
        if not all(series for rows in seeds.values() for series in rows):
            continue  # it was not evaluated during training
        steps = {
            method: sorted({step for series in rows for step, _ in series}) for method, rows in seeds.items()
        }
        units = normalise(
            {method: [_on(steps[method], series) for series in rows] for method, rows in seeds.items()},
            arms[0]["accuracy"][0][number],
        )
        curves += [
            TaskCurve(method, task, steps[method], values.tolist()) for method, values in units.items()
        ]
    return curves


def _on(steps: Sequence[int], series: Sequence[tuple[int, float]]) -> list[float]:
    """The last value known at each step: a seed that stopped early stays where it was."""
    return [next((y for at, y in reversed(series) if at <= step), series[0][1]) for step in steps]


def _series(arm: Mapping[str, Any], task: str) -> list[tuple[int, float]]:
    """(step, accuracy); where one stage ends and the next begins it is measured twice, and counts once."""
    return sorted({row["step"]: row["tasks"][task] for row in arm["curve"] if task in row["tasks"]}.items())


def _starts(curve: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """(first step, name) of each stage."""
    first: dict[str, float] = {}
    for row in curve:
        first.setdefault(row["stage"], row["step"])
    return [(step, name) for name, step in first.items()]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
