"""Stages and arms: which configurations a continual run consists of.

A stage is the run's configuration with what the stage changes; an arm is one method at one learning rate with
one seed, which takes one model through all stages in order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdft_jax.config import Config, from_dict, to_dict
from sdft_jax.config.overrides import merge
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import EvalSet, prepare_eval
from sdft_jax.training.inputs import Prepared, prepare

PRIOR = "prior"
"""Name of the suite of old skills among the tasks; no stage may have it."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage, before any arm is chosen."""

    name: str
    config: Config
    changes: Mapping[str, Any]
    """What it changes, as nested keys."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way through the stages."""

    method: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Directory below the run's."""
        return self.method if self.method == "oracle" else f"{self.method}-lr{self.rate}-seed{self.seed}"

    @property
    def rate(self) -> str:
        """The learning rate as it is written: 3e-5."""
        return scientific(self.learning_rate)


def scientific(rate: float) -> str:
    """A learning rate as it is written: 3e-5."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages of a configuration.

    Raises:
        SdftError: there is none, or one without a name or data of its own, or with keys that are unknown or
            belong to the whole run; nothing is measured, or not what a method needs.
    """
    if not config.continual.stages:
        raise SdftError(
            "continual.stages is empty: list the stages in the configuration, such as "
            "{name: tools, data: {path: FILE}, eval: {path: FILE}}."
        )
    stages = tuple(_stage(config, number, dict(tree)) for number, tree in enumerate(config.continual.stages))
    _check_names("continual.stages", [stage.name for stage in stages])
    if not any(stage.config.eval.path for stage in stages):
        raise SdftError(
            "continual.stages: nothing would be measured: give at least one stage its held-out rows as "
            "eval.path."
        )
    unshown = [stage.name for stage in stages if not (config.eval.teacher and stage.config.eval.teacher)]
    if unshown and any(arm.method == "oracle" for arm in arms_of(config)):
        raise SdftError(
            f"stage {unshown[0]}: the oracle answers with the demonstration in context: leave eval.teacher "
            "at true, or remove oracle from continual.methods."
        )
    for stage in stages:
        if "data" not in stage.changes:
            raise SdftError(
                f"continual.stages: stage {stage.name} has no data of its own: add data: {{path: FILE}}."
            )
    return stages


def _check_names(where: str, names: Sequence[str], taken: Sequence[str] = ()) -> None:
    """Refuse a name that would stand for two things, or for a directory in another."""
    for name in names:
        if names.count(name) > 1 or name in (PRIOR, *taken) or "/" in name:
            raise SdftError(
                f"{where}: the name {name!r} is taken twice, reserved or holds a slash: give another."
            )


def _stage(config: Config, number: int, tree: dict[str, Any]) -> Stage:
    name = tree.pop("name", None)
    if not isinstance(name, str) or not name:
        raise SdftError(f"continual.stages: stage {number + 1} has no name: add name: SOMETHING.")
    if own := {"output", "continual", "model"} & tree.keys():
        raise SdftError(
            f"continual.stages: stage {name} sets {sorted(own)[0]}, which belongs to the whole run: remove "
            "it there."
        )
    whole = merge(to_dict(config), {"continual": {"stages": ()}, "baseline": False})
    return Stage(name, from_dict(merge(whole, tree), f"continual.stages: stage {name}"), tree)


def suites_of(config: Config, prepared: Prepared) -> dict[str, tuple[Config, EvalSet]]:
    """Further questions, each with its settings and rows. Raises SdftError for what is wrong in one."""
    found = {}
    for number, tree in enumerate(config.continual.suites):
        name = tree.get("name")
        if not isinstance(name, str) or not name:
            raise SdftError(f"continual.suites: suite {number + 1} has no name: add name: SOMETHING.")
        keys = {key: value for key, value in tree.items() if key != "name"}
        own = from_dict(merge(to_dict(config), {"eval": keys}), f"continual.suites: suite {name}")
        if own.eval.path is None:
            raise SdftError(f"continual.suites: suite {name} has no path: add path: FILE.")
        rows = prepare_eval(own.eval.path, own, prepared.tokenizer, prepared.eos, own.eval.teacher)
        found[name] = (own, rows)
    stages = [str(tree.get("name")) for tree in config.continual.stages]
    _check_names("continual.suites", [tree["name"] for tree in config.continual.suites], stages)
    return found


def last_model(config: Config, arm: Arm, stages: Sequence[Stage]) -> Path:
    """Hugging Face directory of what an arm ended with."""
    final = (joined(stages),) if arm.method == "joint" else stages
    return directory_of(config, arm, len(final) - 1, final[-1]) / "model"


def arms_of(config: Config) -> tuple[Arm, ...]:
    """Every method at every learning rate with every seed; the oracle, which is not trained, once."""
    options = config.continual
    methods = options.methods or (config.train.method,)
    rates = options.learning_rates or (config.optimizer.learning_rate,)
    seeds = options.seeds or (config.train.seed,)
    every = [Arm(*settings) for settings in itertools.product(methods, rates, seeds)]
    return tuple(arm for arm in every if arm.method != "oracle" or arm == Arm("oracle", rates[0], seeds[0]))


def on_arm(stage: Stage, arm: Arm, sweep: bool, output: str, start: str) -> Config:
    """The stage's run: the arm's method, rate and seed, from the weights in `start`.

    Args:
        stage: what is learned.
        arm: how.
        sweep: whether the arm's learning rate stands above the stage's own.
        output: directory of the run.
        start: model directory.
    """
    changes: dict[str, Any] = {
        "output": output,
        "model": {"path": start},
        "train": {"method": arm.method, "seed": arm.seed},
        "eval": {"base": stage.config.model.path},
    }
    if sweep:
        changes["optimizer"] = {"learning_rate": arm.learning_rate}
    return from_dict(merge(to_dict(stage.config), changes), f"stage {stage.name}")


def joined(stages: Sequence[Stage]) -> Stage:
    """One stage for all: as many steps as all of them, to the end, since no stage's rows speak for all."""
    steps = [stage.config.train.steps for stage in stages]
    total = sum(step for step in steps if step) if all(steps) else None
    first = stages[0]
    train = dataclasses.replace(
        first.config.train, steps=total, stop_at=None, patience=0, max_kl=None, choose="last"
    )
    return Stage("joint", dataclasses.replace(first.config, train=train), {})


def prepare_joint(stages: Sequence[Prepared]) -> Prepared:
    """Rows of all stages in one; a row's number counts through them in order."""
    rows = tuple(row for prepared in stages for row in prepared.train)
    numbered = tuple(dataclasses.replace(row, row=number) for number, row in enumerate(rows))
    return dataclasses.replace(stages[0], train=numbered)


def prepare_all(
    stages: Sequence[Stage], methods: Sequence[str], active: bool
) -> dict[str, tuple[Prepared, ...]]:
    """For each method every stage's tokens: what is wrong with any of them is found before the first."""

    def of(stage: Stage, method: str) -> Prepared:
        config = stage.config
        return prepare(on_arm(stage, Arm(method, 0.0, 0), False, config.output, config.model.path), active)

    return {method: tuple(of(stage, method) for stage in stages) for method in dict.fromkeys(methods)}


def directory_of(config: Config, arm: Arm, number: int, stage: Stage) -> Path:
    """Where a stage of an arm runs: ARM/NUMBER-STAGE."""
    return Path(config.output) / arm.name / f"{number + 1}-{stage.name}"
