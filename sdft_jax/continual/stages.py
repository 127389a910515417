"""The stages and arms of a continual run, and their configurations.

A stage is the run's configuration with the changes of that stage. An arm is a method with a learning rate and
a seed; it trains one model on all stages in order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdft_jax.config import Config, Method, from_dict, merge, method_named, to_dict
from sdft_jax.data.encoding import PromptFormat
from sdft_jax.data.lazy_rows import joined
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import EvalSet, load_eval_set
from sdft_jax.reporting.reporter import SILENT, Reporter
from sdft_jax.training.inputs import Inputs, load_inputs
from sdft_jax.training.run_directory import RunDirectory

PRIOR = "prior"
"""The name of the prior skills among the tasks; reserved, so no stage or suite may have it."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage, independent of the arm."""

    name: str
    config: Config
    changes: Mapping[str, Any]
    """The keys that the stage changes, as nested dictionaries."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method, a learning rate and a seed."""

    method: Method
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its directory, below that of the run."""
        if not self.method.trains:
            return self.method.name
        return f"{self.method.name}-lr{self.rate}-seed{self.seed}"

    @property
    def rate(self) -> str:
        """The learning rate as text, such as 3e-5."""
        return scientific(self.learning_rate)


def scientific(rate: float) -> str:
    """Return a learning rate as text, such as 3e-5."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def stages_of(config: Config) -> tuple[Stage, ...]:
    """Return the stages of a configuration.

    Raises:
        SdftError: there is no stage; a stage has no name or no data of its own, or has unknown keys or keys
            of the whole run; no stage has an evaluation; or the oracle is evaluated without demonstrations.
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
            "continual.stages: no stage has an evaluation: set eval.path of at least one stage to its "
            "held-out rows."
        )
    without_teacher = [
        stage.name for stage in stages if not (config.eval.teacher and stage.config.eval.teacher)
    ]
    if without_teacher and not all(arm.method.trains for arm in arms_of(config)):
        raise SdftError(
            f"stage {without_teacher[0]}: the oracle answers with the demonstration in context, and "
            "eval.teacher is false: set it to true, or remove oracle from continual.methods."
        )
    for stage in stages:
        if "data" not in stage.changes:
            raise SdftError(
                f"continual.stages: stage {stage.name} has no data of its own: add data: {{path: FILE}}."
            )
    return stages


def _check_names(section: str, names: Sequence[str], taken: Sequence[str] = ()) -> None:
    """Raise SdftError for a name that is used twice, is reserved, or cannot be the name of a directory."""
    for name in names:
        if names.count(name) > 1 or name in (PRIOR, *taken) or "/" in name:
            raise SdftError(
                f"{section}: the name {name!r} is used twice, is reserved or contains a slash: choose "
                "another name."
            )


def _stage(config: Config, number: int, tree: dict[str, Any]) -> Stage:
    name = tree.pop("name", None)
    if not isinstance(name, str) or not name:
        raise SdftError(f"continual.stages: stage {number + 1} has no name: add name: SOMETHING.")
    if own := {"output", "continual", "model", "lora"} & tree.keys():
        raise SdftError(
            f"continual.stages: stage {name} sets {sorted(own)[0]}, which belongs to the whole run: remove "
            "it from the stage."
        )
    shared = merge(to_dict(config), {"continual": {"stages": ()}, "baseline": False})
    return Stage(name, from_dict(merge(shared, tree), f"continual.stages: stage {name}"), tree)


def load_suites(config: Config, format: PromptFormat) -> dict[str, tuple[Config, EvalSet]]:
    """Return the additional evaluations by name, each with its settings and rows.

    Raises:
        SdftError: a suite has no name or path, an invalid name, unknown keys, or invalid rows.
    """
    suites = {}
    for number, tree in enumerate(config.continual.suites):
        name = tree.get("name")
        if not isinstance(name, str) or not name:
            raise SdftError(f"continual.suites: suite {number + 1} has no name: add name: SOMETHING.")
        keys = {key: value for key, value in tree.items() if key != "name"}
        own = from_dict(merge(to_dict(config), {"eval": keys}), f"continual.suites: suite {name}")
        if own.eval.path is None:
            raise SdftError(f"continual.suites: suite {name} has no path: add path: FILE.")
        suites[name] = (own, load_eval_set(own.eval.path, own, format, own.eval.teacher))
    stages = [str(tree.get("name")) for tree in config.continual.stages]
    _check_names("continual.suites", [tree["name"] for tree in config.continual.suites], stages)
    return suites


def arms_of(config: Config) -> tuple[Arm, ...]:
    """Return every combination of method, learning rate and seed; one arm for a method without training."""
    options = config.continual
    methods = [method_named(name) for name in options.methods] or [config.method]
    rates = options.learning_rates or (config.optimizer.learning_rate,)
    seeds = options.seeds or (config.train.seed,)
    for key, values in (("methods", methods), ("learning_rates", rates), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise SdftError(
                f"continual.{key} has a value twice: remove one of them, since copies of a run are not "
                "independent runs."
            )
    every = [Arm(*settings) for settings in itertools.product(methods, rates, seeds)]
    return tuple(arm for arm in every if arm.method.trains or arm == Arm(arm.method, rates[0], seeds[0]))


def arm_config(stage: Stage, arm: Arm, sweep: bool, output: str, start: str | None = None) -> Config:
    """Return the configuration of a stage's run in an arm.

    Args:
        stage: its data, evaluation and settings.
        arm: its method, learning rate and seed.
        sweep: True if the arm's learning rate replaces the stage's own.
        output: the directory of the run.
        start: the previous stage's directory of the model, or of the adapter, to start from; None to start
            as the configuration does.
    """
    part, key = ("lora", "adapter") if stage.config.lora.rank else ("model", "path")
    changes: dict[str, Any] = {
        "output": output,
        "train": {"method": arm.method.name, "seed": arm.seed},
        "eval": {"base": stage.config.model.path},
    }
    if start is not None:
        changes[part] = {key: start}
    if sweep:
        changes["optimizer"] = {"learning_rate": arm.learning_rate}
    return from_dict(merge(to_dict(stage.config), changes), f"stage {stage.name}")


def arm_stages(arm: Arm, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages that an arm trains: all in order, or one that combines them for a joint method."""
    return (_joint_stage(stages),) if arm.method.joint else tuple(stages)


def arm_inputs(arm: Arm, stages: Sequence[Stage], inputs: Sequence[Inputs]) -> tuple[Inputs, ...]:
    """Return the inputs of `arm_stages`, from those of all stages."""
    return (_joint_inputs(stages, inputs),) if arm.method.joint else tuple(inputs)


def _joint_stage(stages: Sequence[Stage]) -> Stage:
    """Return one stage with the steps of all; it never stops early, since no evaluation covers all stages."""
    steps = [stage.config.train.steps for stage in stages]
    total = sum(step for step in steps if step) if all(steps) else None
    first = stages[0]
    train = dataclasses.replace(
        first.config.train, steps=total, stop_at=None, patience=0, max_kl=None, choose="last"
    )
    return Stage("joint", dataclasses.replace(first.config, train=train), {})


def _joint_inputs(stages: Sequence[Stage], inputs: Sequence[Inputs]) -> Inputs:
    """Return inputs with the training rows of all stages, numbered consecutively."""
    rows = joined([stage_inputs.train for stage_inputs in inputs])
    every = " ".join(part.digests.get("the training rows", "") for part in inputs)
    digests = {**inputs[0].digests, "the training rows": every}
    dropped = functools.reduce(operator.add, (part.dropped for part in inputs))
    sources = tuple(stage.config.data.path for stage in stages)
    return dataclasses.replace(inputs[0], train=rows, dropped=dropped, sources=sources, digests=digests)


def load_all_inputs(
    stages: Sequence[Stage], methods: Sequence[Method], reporter: Reporter = SILENT
) -> dict[str, tuple[Inputs, ...]]:
    """Return the inputs of every stage by method name, so that errors in them are raised before training."""

    def load(stage: Stage, method: Method) -> Inputs:
        config = stage.config
        arm = Arm(method, 0.0, 0)
        return load_inputs(arm_config(stage, arm, False, config.output), reporter)

    unique = {method.name: method for method in methods}
    return {name: tuple(load(stage, method) for stage in stages) for name, method in unique.items()}


def stage_directory(config: Config, arm: Arm, number: int, stage: Stage) -> RunDirectory:
    """Return the directory of a stage's run in an arm: ARM/NUMBER-STAGE."""
    return RunDirectory(config.output).below(arm.name).below(f"{number + 1}-{stage.name}")


def last_model(config: Config, arm: Arm, stages: Sequence[Stage]) -> str:
    """Return the Hugging Face directory of the model after an arm's last stage."""
    own = arm_stages(arm, stages)
    return str(stage_directory(config, arm, len(own) - 1, own[-1]).model)
