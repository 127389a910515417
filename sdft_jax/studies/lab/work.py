"""Implements the work of trials with the library's own code; `Trial.work` is the name of a function here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft_jax.config import PRESETS, Method, from_dict, merge, method_named, sharding_from
from sdft_jax.continual.arms import Plan, make_plan, measure_base, run_arm
from sdft_jax.continual.stages import Arm, last_model
from sdft_jax.continual.summary import curve
from sdft_jax.evaluation.grading import fault_note
from sdft_jax.evaluation.scoring import sample_verdicts
from sdft_jax.models import load_model
from sdft_jax.reporting.reporter import process_reporter

Result = dict[str, Any]


def arm(settings: Mapping[str, Any], output: Path) -> Result:
    """Train one arm through its stages; with `pass_at_k`, also sample from its final model."""
    selected = Arm(method_named(settings["method"]), settings["learning_rate"], settings["seed"])
    plan = _plan(settings, output, selected.method)
    measured = run_arm(plan, selected, sweep=True)
    result: Result = {"measured": measured, "curve": curve(plan, selected)}
    if sampling := settings.get("pass_at_k"):
        directory = last_model(plan.config, selected, plan.stages)
        result["verdicts"] = _verdicts(plan, directory, sampling)
    return result


def base(settings: Mapping[str, Any], output: Path) -> Result:
    """Measure the model before training, alone and with the demonstration in context."""
    plan = _plan(settings, output, method_named("sdft"))
    result: Result = {"measured": measure_base(plan)}
    if sampling := settings.get("pass_at_k"):
        result["verdicts"] = _verdicts(plan, plan.first_inputs.directory, sampling)
    return result


def cost(settings: Mapping[str, Any], output: Path) -> Result:
    """Return the FLOPs and seconds of one step of a method."""
    from sdft_jax.studies.lab.cost import measure_step

    return measure_step(settings)


def _plan(settings: Mapping[str, Any], output: Path, method: Method) -> Plan:
    tree = merge(PRESETS["sdft"], settings["config"])
    config = from_dict(merge(tree, {"output": str(output)}), "lab")
    return make_plan(config, [method], process_reporter())


def _verdicts(plan: Plan, directory: str, sampling: Mapping[str, Any]) -> list[list[int]]:
    """Return, for each of the first test prompts, which of a model's n samples are right.

    Sampling is at temperature 1 and top-p 0.95, as in the paper.
    """
    options, inputs = plan.config.model, plan.first_inputs
    model, params = load_model(
        directory,
        dtype=options.param_dtype,
        sharding=sharding_from(plan.config),
        compute_dtype=options.compute_dtype,
    )
    assert inputs.new is not None
    rows = dataclasses.replace(
        inputs.new,
        examples=inputs.new.examples[: sampling["prompts"]],
        encoded=inputs.new.encoded[: sampling["prompts"]],
    )
    config = plan.stages[0].config
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, top_p=0.95))
    track = functools.partial(plan.reporter.track, description="sampling")
    speaker = inputs.speaker(model, params)
    verdicts = sample_verdicts(speaker, rows, config, 0, sampling["n"], track)
    plan.reporter.print(*fault_note(verdicts.faults, config))
    return verdicts.correct


def real(settings: Mapping[str, Any], output: Path) -> Result:
    """Train or measure a pretrained model."""
    from sdft_jax.studies.lab.real.study import perform

    return perform(settings, output)
