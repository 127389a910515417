"""`sdft train`: load the inputs, train, compare with SFT, and print the results and their paths."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdft_jax.config import Config, describe
from sdft_jax.data import prompt_ends
from sdft_jax.data.encoding import Encoded
from sdft_jax.data.lazy_rows import LazyRows, checked
from sdft_jax.files import write_errors, write_text
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.reporter import Reporter, process_reporter
from sdft_jax.reporting.run_plot import plot_run
from sdft_jax.reporting.statistics import wilson
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training.inputs import Inputs, load_inputs
from sdft_jax.training.loop import Run, total_steps, train
from sdft_jax.training.run_directory import CHECKPOINTS, RunDirectory

BASELINE = "sft"
"""Name of the baseline's directory inside the run directory."""


def run(config: Config) -> Run:
    """Train by `config` and, if `config.baseline`, also by SFT; print a table and write a plot.

    Raises:
        SdftError, Interrupted: as in `load_inputs` and `training.loop.train`.
    """
    reporter = process_reporter()
    baseline = baseline_config(config) if config.baseline else None
    inputs = load_inputs(config, reporter)
    _print_introduction(reporter, config, inputs)
    runs: dict[str, Run] = {config.method.name: train(config, inputs, reporter=reporter)}
    if baseline:
        reporter.heading("SFT on the same demonstrations")
        runs[baseline.method.name] = train(baseline, inputs, reporter=reporter)
    if reporter.writes:
        _conclude(reporter, config, runs, inputs)
    return runs[config.method.name]


def baseline_config(config: Config) -> Config:
    """Return the configuration of the SFT baseline: the same data, model and steps, without a teacher."""
    rate = config.baseline_learning_rate
    return dataclasses.replace(
        config,
        output=RunDirectory(config.output).below(BASELINE).output,
        baseline=False,
        train=dataclasses.replace(config.train, method="sft"),
        optimizer=dataclasses.replace(
            config.optimizer, learning_rate=config.optimizer.learning_rate if rate is None else rate
        ),
    )


def _print_introduction(reporter: Reporter, config: Config, inputs: Inputs) -> None:
    steps = total_steps(config, len(inputs.train))
    reporter.heading(
        config.method.name.upper(),
        f" of {config.model.path}: {_demonstrations(inputs.train)} from {config.data.path}, {steps} "
        f"steps of {config.train.batch_size}",
    )
    if reporter.writes:
        reporter.print(f"on {describe_hardware()}")
    if isinstance(inputs.train, LazyRows):
        reporter.print(
            f"{config.data.check:,} of these rows, evenly spread, were checked; each other row is read and "
            "tokenized when it is trained on"
        )
    dropped = {"": inputs.dropped, "general prompts: ": inputs.general_dropped}
    dropped |= {f"{name}: ": rows.dropped for name, rows in inputs.eval_sets.items()}
    for name, rows in dropped.items():
        if str(rows):
            reporter.print(f"{name}dropped {rows.total} rows: {rows}")
    reporter.print(*prompt_ends.describe(inputs.ends))
    if lost := sum(row.lost_thoughts for row in checked(inputs.train)):
        reporter.print(
            f"the chat template drops the thoughts of {lost:,} earlier assistant turns in these rows, as it "
            "does in every conversation"
        )
    settings = ", ".join(f"{key}={value}" for key, value, _ in describe(config))
    reporter.print(f"settings that differ from the defaults: {settings or 'none'}")


def _demonstrations(rows: Sequence[Encoded]) -> str:
    """Return the numbers of demonstrations, of the prompts that have several, and of traces.

    Of a large source, which is not read, only the number of prompts is known.
    """
    if isinstance(rows, LazyRows):
        return f"{len(rows)} prompts"
    total = sum(len(row.others) + 1 for row in rows)
    parts = [f"{total} demonstrations"]
    if total > len(rows):
        parts.append(f"of {len(rows)} prompts (one is drawn in each epoch)")
    if traces := [row.row for row in rows if row.turn is not None]:
        parts.append(f"{len(traces)} of them assistant turns of {len(set(traces))} traces")
    return ", ".join(parts)


def _conclude(reporter: Reporter, config: Config, runs: Mapping[str, Run], inputs: Inputs) -> None:
    directory = RunDirectory(config.output)
    rows = result_rows(runs)
    counts = {name: len(rows.examples) for name, rows in inputs.eval_sets.items()}
    measured = {key for row in rows for key, value in row.items() if value is not None}
    if measured & {"new skill", "old skills"}:
        shown = [{key: value for key, value in row.items() if key in measured} for row in rows]
        note = "KL to base: KL(model || base) in nats per token, on the model's own answers to old skills."
        reporter.print(
            summary_table(shown, "Accuracy on held-out rows, greedy"),
            *([note] if "KL to base" in measured else []),
            *interval_sentences(rows, counts),
        )
    with reporter.tolerating(directory.plot):
        plot_run(directory.metrics, plot_points(runs), directory.plot, f"Measured on {describe_hardware()}.")
    with write_errors(directory.summary, "fix this and run the same command again"):
        write_text(directory.summary, json.dumps({"rows": rows, "hardware": describe_hardware()}, indent=1))
    directory.push()
    paths = {
        "model (Hugging Face)": directory.named(runs[config.method.name].exported),
        "checkpoints (Orbax)": directory.below(CHECKPOINTS).output,
        "metrics": directory.named(directory.metrics),
        "plot": directory.named(directory.plot),
        **({"rollouts": directory.named(directory.rollouts)} if directory.rollouts.is_dir() else {}),
        "summary": directory.named(directory.summary),
    }
    reporter.print(*(f"{name:<21} {path}" for name, path in paths.items()))


def result_rows(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Return the rows of the final table: before training, the teacher, and after training by each method."""
    rows: list[dict[str, Any]] = []
    start = _evaluation(next(iter(runs.values())), 0)
    if start.keys() - {"step"}:
        rows.append(_row("before", 0, start))
        if "teacher" in start:
            rows.append({"model": "before, with the demonstration", "new skill": start["teacher"]})
    for method, result in runs.items():
        if any({"accuracy", "prior"} & row.keys() for row in result.evaluations):
            rows.append(_row(f"after {method.upper()}", result.step, _evaluation(result, result.step)))
    return rows


def interval_sentences(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> list[str]:
    """Return a sentence with Wilson's 95 % intervals of the accuracies after training.

    Args:
        rows: the rows of the final table.
        counts: the number of evaluation rows of each column.
    """
    intervals = []
    for row in rows:
        for name, n in counts.items():
            if row["model"].startswith("after") and row.get(name) is not None:
                low, high = wilson(round(row[name] * n), n)
                intervals.append(f"{row['model']} {name} {low:.3f} to {high:.3f} ({n} rows)")
    return [f"95 % intervals (Wilson): {', '.join(intervals)}."] if intervals else []


def _evaluation(run: Run, step: int) -> Mapping[str, Any]:
    """Return the evaluation at a step; {} if the log does not have it."""
    return next((row for row in run.evaluations if row["step"] == step), {})


def _row(model: str, step: int, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    columns = {"new skill": "accuracy", "old skills": "prior", "KL to base": "kl_to_base"}
    row: dict[str, Any] = {"model": model, "steps": step}
    return row | {
        name: evaluation.get(key, 0.0 if key == "kl_to_base" and "prior" in evaluation and not step else None)
        for name, key in columns.items()
    }


def plot_points(runs: Mapping[str, Run]) -> Sequence[Mapping[str, Any]]:
    """Return the evaluations in the format of `plot_run`."""
    points: list[dict[str, Any]] = []
    for method, result in runs.items():
        for evaluation in (row for row in result.evaluations if "accuracy" in row or "prior" in row):
            both = {"new": evaluation.get("accuracy"), "old": evaluation.get("prior")}
            known = {key: value for key, value in both.items() if value is not None}
            points.append({"method": method.upper(), "step": evaluation["step"], **known})
            if evaluation["step"] == 0 and method == next(iter(runs)):
                points.append({"method": "base", "step": 0, **known})
                if "teacher" in evaluation:
                    points.append({"method": "teacher", "step": 0, "new": evaluation["teacher"]})
    return points
