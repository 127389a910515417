"""What a trial does, with the library's own code: the functions here are named by `Trial.work`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from sdft_jax.config import Config, from_dict
from sdft_jax.config.devices import sharding_from
from sdft_jax.config.overrides import merge
from sdft_jax.config.presets import PRESETS
from sdft_jax.continual.arms import Plan, make_plan, measure_base, run_arm
from sdft_jax.continual.stages import Arm, last_model
from sdft_jax.continual.summary import curve
from sdft_jax.evaluation.scoring import sample_verdicts
from sdft_jax.models import Model, load_model
from sdft_jax.types import Params

Result = dict[str, Any]


def arm(settings: Mapping[str, Any], output: Path) -> Result:
    """Train one arm through its stages; `pass_at_k` samples from the model that it ends with."""
    chosen = Arm(settings["method"], settings["learning_rate"], settings["seed"])
    plan = _plan(settings, output, chosen.method)
    measured = run_arm(plan, chosen, sweep=True)
    found: Result = {"measured": measured, "curve": curve(plan, chosen)}
    if sampling := settings.get("pass_at_k"):
        directory = last_model(plan.config, chosen, plan.stages)
        found["verdicts"] = _verdicts(plan, *_load(plan.config, str(directory)), sampling)
    return found


def base(settings: Mapping[str, Any], output: Path) -> Result:
    """The model before training, alone and with the demonstration in context."""
    plan = _plan(settings, output, "sdft")
    found: Result = {"measured": measure_base(plan)}
    if sampling := settings.get("pass_at_k"):
        directory = next(iter(plan.prepared.values()))[0].directory
        found["verdicts"] = _verdicts(plan, *_load(plan.config, directory), sampling)
    return found


def cost(settings: Mapping[str, Any], output: Path) -> Result:
    """FLOPs and seconds of a method's step."""
    from sdft_jax.studies.lab.cost import measure_step

    return measure_step(settings)


def _plan(settings: Mapping[str, Any], output: Path, method: str) -> Plan:
    tree = merge(PRESETS["sdft"], settings["config"])
    config = from_dict(merge(tree, {"output": str(output)}), "lab")
    return make_plan(config, [method], active=True)


def _load(config: Config, directory: str) -> tuple[Model, Params]:
    return load_model(
        directory,
        dtype=config.model.param_dtype,
        sharding=sharding_from(config),
        compute_dtype=config.model.compute_dtype,
    )


def _verdicts(plan: Plan, model: Model, params: Params, sampling: Mapping[str, Any]) -> list[list[int]]:
    """Which of n samples are right, for the first prompts of the test (paper: T 1, top-p 0.95)."""
    prepared = next(iter(plan.prepared.values()))[0]
    assert prepared.new is not None
    rows = dataclasses.replace(
        prepared.new,
        examples=prepared.new.examples[: sampling["prompts"]],
        encoded=prepared.new.encoded[: sampling["prompts"]],
    )
    config = plan.stages[0].config
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, top_p=0.95))
    return sample_verdicts(
        model, params, rows, prepared.tokenizer, prepared.eos, config, jax.random.key(0), sampling["n"]
    )
