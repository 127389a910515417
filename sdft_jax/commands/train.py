"""A whole run as the command line gives it: check, train, compare, show, and say where everything lies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

from sdft_jax.config import Config, describe
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.run_plot import plot_run
from sdft_jax.reporting.sinks import METRICS
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training import bucket
from sdft_jax.training.inputs import Prepared, prepare
from sdft_jax.training.loop import Run, total_steps, train

BASELINE = "sft"
"""Directory of the baseline inside the run's."""


def run(config: Config) -> Run:
    """Train by `config`, and by SFT beside it if `config.baseline`; ends with a table, a plot and paths.

    Raises what `prepare` and `train` raise.
    """
    console = Console()
    active = jax.process_index() == 0
    prepared = prepare(config, active)
    beside = _baseline(config) if config.baseline else None
    if active:
        _introduce(console, config, prepared)
    runs: dict[str, Run] = {config.train.method: train(config, prepared, active=active)}
    if beside:
        if active:
            console.print("[bold]SFT on the same demonstrations[/]")
        runs[beside.train.method] = train(beside, prepared, active=active)
    if active:
        _conclude(console, config, runs)
    return runs[config.train.method]


def _baseline(config: Config) -> Config:
    """The same run by SFT: same data, model and steps, no teacher."""
    rate = config.baseline_learning_rate
    return dataclasses.replace(
        config,
        output=f"{config.output.rstrip('/')}/{BASELINE}",
        baseline=False,
        train=dataclasses.replace(config.train, method="sft"),
        optimizer=dataclasses.replace(
            config.optimizer, learning_rate=config.optimizer.learning_rate if rate is None else rate
        ),
    )


def _introduce(console: Console, config: Config, prepared: Prepared) -> None:
    steps = total_steps(config, len(prepared.train))
    console.print(
        f"[bold]{config.train.method.upper()}[/] of {config.model.path}: {len(prepared.train)} "
        f"demonstrations from {config.data.path}, {steps} steps of {config.train.batch_size}",
        highlight=False,
    )
    console.print(f"on {describe_hardware()}", highlight=False)
    dropped = {"": prepared.dropped, "general prompts: ": prepared.general_dropped}
    dropped |= {f"{name}: ": rows.dropped for name, rows in _sets(prepared) if rows}
    for name, drop in dropped.items():
        if drop.total:
            console.print(f"{name}dropped {drop.total} rows: {drop}", highlight=False)
    settings = ", ".join(f"{key}={value}" for key, value, _ in describe(config))
    console.print(f"settings that differ from the defaults: {settings or 'none'}", highlight=False)


def _sets(prepared: Prepared) -> list[tuple[str, Any]]:
    return [("new skill", prepared.new), ("validation", prepared.validation), ("old skills", prepared.prior)]


def _conclude(console: Console, config: Config, runs: Mapping[str, Run]) -> None:
    output = bucket.local(config.output)
    rows = _table(runs)
    plot_run(output / METRICS, _points(runs), output / "run.png", f"Measured on {describe_hardware()}.")
    (output / "summary.json").write_text(
        json.dumps({"rows": rows, "hardware": describe_hardware()}, indent=1)
    )
    if any(key in row for row in rows for key in ("new skill", "old skills")):
        console.print(summary_table(rows, "Accuracy on held-out rows, greedy"))
        console.print(
            "KL to base: KL(model || base) in nats per token, on the model's own answers to old skills."
        )
    bucket.push(config.output)
    for what, name in {
        "model (Hugging Face)": runs[config.train.method].exported.name,
        "checkpoints (Orbax)": "checkpoints",
        "metrics": METRICS,
        "plot": "run.png",
        "rollouts": "rollouts",
        "summary": "summary.json",
    }.items():
        console.print(f"{what:<21} {config.output.rstrip('/')}/{name}", highlight=False, soft_wrap=True)


def _table(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """One row before training, one for the teacher, one after each method."""
    rows: list[dict[str, Any]] = []
    start = next(iter(runs.values())).evaluations[:1]
    if start and start[0].keys() - {"step"}:
        rows.append(_row("before", 0, start[0]))
        if "teacher" in start[0]:
            rows.append({"model": "before, shown the demonstration", "new skill": start[0]["teacher"]})
    for method, done in runs.items():
        if rows:
            rows.append(_row(f"after {method.upper()}", done.step, done.evaluations[-1]))
    return rows


def _row(model: str, step: int, found: Mapping[str, Any]) -> dict[str, Any]:
    columns = {"new skill": "accuracy", "old skills": "prior", "KL to base": "kl_to_base"}
    row: dict[str, Any] = {"model": model, "steps": step}
    return row | {
        name: found.get(key, 0.0 if key == "kl_to_base" and not step else None)
        for name, key in columns.items()
    }


def _points(runs: Mapping[str, Run]) -> Sequence[Mapping[str, Any]]:
    """Evaluations as `plot_run` wants them."""
    points: list[dict[str, Any]] = []
    for method, done in runs.items():
        for found in (row for row in done.evaluations if "accuracy" in row or "prior" in row):
            both = {"new": found.get("accuracy"), "old": found.get("prior")}
            known = {key: value for key, value in both.items() if value is not None}
            points.append({"method": method.upper(), "step": found["step"], **known})
            if found["step"] == 0 and method == next(iter(runs)):
                points.append({"method": "base", "step": 0, **known})
                if "teacher" in found:
                    points.append({"method": "teacher", "step": 0, "new": found["teacher"]})
    return points
