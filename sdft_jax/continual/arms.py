"""The training of an arm: its stages in order, with measurements of all tasks and prior skills after each.

Each stage of an arm is a run of `training.train` in its own directory. Student and teacher start from the
final weights of the previous stage. With adapters these are the adapters: one adapter of the first base
learns all stages, distances are from that base, and nothing is merged or rounded between stages. Finished
work is read from disk, and an interrupted stage resumes like any run: the result is bit-identical to that of
an uninterrupted run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from sdft_jax.algorithm import make_model
from sdft_jax.config import Config, Method, method_named, sharding_from
from sdft_jax.continual.stages import (
    PRIOR,
    Arm,
    Stage,
    arm_config,
    arm_inputs,
    arm_stages,
    load_all_inputs,
    load_suites,
    stage_directory,
    stages_of,
)
from sdft_jax.data.encoding import make_format
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.grading import fault_note
from sdft_jax.evaluation.scoring import Evaluation, evaluate
from sdft_jax.files import read_json, write_text
from sdft_jax.models import Model, model_directory, read_architecture, save_pretrained
from sdft_jax.models.hf.adapter import save_adapter
from sdft_jax.models.speaker import Speaker
from sdft_jax.plan.footprint import answer_arrays, widths_of
from sdft_jax.reporting.reporter import Reporter, process_reporter
from sdft_jax.training.checksums import MANIFEST, damage, seal_directory
from sdft_jax.training.evaluations import load_reference
from sdft_jax.training.inputs import Inputs, adapter_digest, hold_out
from sdft_jax.training.loop import Watch, train
from sdft_jax.training.out_of_memory import explained
from sdft_jax.training.run_directory import RunDirectory
from sdft_jax.training.start import load_start
from sdft_jax.types import Params

Measured = dict[str, dict[str, Any]]
"""Name of a task, a suite or `prior` -> its results, in the format of `as_json`."""

MEASURED = "measured.json"
"""The file with the results of a stage."""
VALIDATION = "validation/"
"""Prefix of a task's name for its validation rows."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The data and settings that all arms of a run share."""

    config: Config
    stages: tuple[Stage, ...]
    inputs: Mapping[str, tuple[Inputs, ...]]
    """The inputs of every stage, by the name of the method."""
    suites: Mapping[str, tuple[Config, EvalSet]] = dataclasses.field(default_factory=dict)
    """Additional evaluations."""
    reporter: Reporter = dataclasses.field(default_factory=process_reporter)

    @property
    def first_inputs(self) -> Inputs:
        """The inputs of the first stage; model, tokenizer and prior skills are the same in every stage."""
        return next(iter(self.inputs.values()))[0]

    @property
    def rows(self) -> dict[str, tuple[Config, EvalSet]]:
        """The settings and rows of every task, its validation, the suites and the prior skills."""
        pairs = list(zip(self.stages, next(iter(self.inputs.values())), strict=True))
        tasks = {stage.name: (stage.config, inputs.new) for stage, inputs in pairs}
        validation = {
            f"{VALIDATION}{stage.name}": (stage.config, inputs.validation) for stage, inputs in pairs
        }
        prior = {PRIOR: (self.config, self.first_inputs.prior)}
        every = tasks | validation | dict(self.suites) | prior
        return {name: (config, rows) for name, (config, rows) in every.items() if rows}


def make_plan(config: Config, methods: Sequence[Method], reporter: Reporter) -> Plan:
    """Read and tokenize the rows of all stages, methods and suites.

    Raises:
        SdftError: a mistake in the data of any stage, or an evaluation contains training prompts.
    """
    stages = stages_of(config)
    inputs = load_all_inputs(stages, methods, reporter)
    first = inputs[methods[0].name][0]
    vocab_size = read_architecture(first.directory).vocab_size
    format = make_format(first.tokenizer, config.data, first.eos_ids, vocab_size)
    suites = load_suites(config, format)
    plan = Plan(config, stages, inputs, suites, reporter)
    held_out = {
        name: tuple(_hold_out(plan, name, stage, part) for stage, part in zip(stages, parts, strict=True))
        for name, parts in inputs.items()
    }
    return dataclasses.replace(plan, inputs=held_out)


def _hold_out(plan: Plan, method: str, stage: Stage, inputs: Inputs) -> Inputs:
    """Return a stage's inputs without the prompts of all evaluations.

    Raises:
        SdftError: the stage trains on prompts of another stage's evaluation, a suite or the prior suite.
    """
    trained = arm_config(stage, Arm(method_named(method), 0.0, 0), False, stage.config.output)
    for name, (config, rows) in plan.rows.items():
        path = config.eval.validation if name.startswith(VALIDATION) else config.eval.path
        inputs = hold_out(inputs, trained, config.eval, config.eval.prior if name == PRIOR else path, rows)
    return inputs


def measure_base(plan: Plan) -> dict[str, Measured]:
    """Return the results of the initial model, as `student` and, with the demonstration in context, as
    `teacher`.
    """
    file = Path(plan.config.output) / "base.json"
    return _once(plan, file, lambda: _measure_base(plan), _is_base)


def _measure_base(plan: Plan) -> dict[str, Measured]:
    config, directory = plan.config, plan.first_inputs.directory
    model = make_model(config, read_architecture(directory), sharding_from(config), directory)
    params = load_start(config, model, directory)
    results = {"student": measure(plan, model, params)}
    if config.eval.teacher:
        results["teacher"] = measure(plan, model, params, teacher=True, base=params)
    return results


def run_arm(plan: Plan, arm: Arm, sweep: bool) -> list[Measured]:
    """Train the unfinished stages of an arm; return the results after each stage.

    Args:
        plan: from `make_plan`.
        arm: the method, learning rate and seed.
        sweep: True if the arm's learning rate replaces those of the stages.
    """
    if not arm.method.trains:
        file = RunDirectory(plan.config.output).below(arm.name).local / MEASURED
        return _once(plan, file, lambda: [_oracle(plan)] * len(plan.stages), _is_oracle)
    stages = arm_stages(arm, plan.stages)
    inputs = arm_inputs(arm, plan.stages, plan.inputs[arm.method.name])
    start, results = None, []
    for number, (stage, stage_inputs) in enumerate(zip(stages, inputs, strict=True)):
        directory = stage_directory(plan.config, arm, number, stage)
        handoff = directory.local / "handoff" if number + 1 < len(stages) else None
        config = arm_config(stage, arm, sweep, directory.output, start)
        work = functools.partial(_run_stage, plan, stage, config, stage_inputs, handoff)
        measured = directory.local / MEASURED
        problem = damage(epath.Path(handoff)) if handoff and (handoff / MANIFEST).exists() else None
        if problem:
            plan.reporter.print(f"{handoff} is damaged and is written again: {problem}.")
        results.append(_once(plan, measured, work, _is_measured, redo=problem is not None))
        start = str(handoff)
    return results


def _run_stage(plan: Plan, stage: Stage, config: Config, inputs: Inputs, handoff: Path | None) -> Measured:
    """Train one stage and measure its final model, which is written to `handoff` in full precision."""
    directory = model_directory(config.model.path)
    digests = {**inputs.digests, **adapter_digest(config, read_architecture(directory), directory)}
    inputs = dataclasses.replace(inputs, directory=directory, source=inputs.directory, digests=digests)
    watched = config.train.eval_every > 0
    if not watched and config.train.choose == "last":  # only the final model is measured, below
        inputs = dataclasses.replace(inputs, new=None, validation=None, prior=None)
    watch = _other_tasks(plan, stage) if watched else None
    run = train(config, inputs, reporter=plan.reporter, watch=watch)
    if handoff:
        if plan.reporter.writes and handoff.exists():
            shutil.rmtree(handoff)
        if config.lora.rank:
            save_adapter(run.model, run.params, handoff, config.model.path, config.model.param_dtype)
        else:
            save_pretrained(run.model, run.params, None, handoff, config.model.param_dtype)
        if plan.reporter.writes:
            seal_directory(epath.Path(handoff))
    return measure(plan, run.model, run.params)


def _other_tasks(plan: Plan, stage: Stage) -> Watch:
    """Return a function that measures the accuracies on the tasks of all other stages, as `accuracy/TASK`."""
    names = {other.name for other in plan.stages} - {stage.name}
    rows = {name: pair for name, pair in plan.rows.items() if name in names}

    def watch(model: Model, params: Params, reporter: Reporter) -> Mapping[str, float]:
        speaker = plan.first_inputs.speaker(model, params)
        return {
            f"accuracy/{name}": _evaluate(reporter, name, speaker, part, config).accuracy
            for name, (config, part) in rows.items()
        }

    return watch


def _evaluate(
    reporter: Reporter, name: str, speaker: Speaker, rows: EvalSet, config: Config, **options
) -> Evaluation:
    track = functools.partial(reporter.track, description=name)
    evaluation = evaluate(speaker, rows, config, track=track, **options)
    reporter.print(*fault_note(evaluation.faults, config))
    return evaluation


def _oracle(plan: Plan) -> Measured:
    """Return the initial model's results; tasks and suites have the demonstration in context."""
    base = measure_base(plan)
    return base["student"] | base.get("teacher", {})


def measure(
    plan: Plan, model: Model, params: Params, teacher: bool = False, base: Params | None = None
) -> Measured:
    """Return accuracy, mean length and KL from the base for every task, validation, suite and prior skills.

    Args:
        plan: the rows, and the directory of the base model.
        model: the architecture.
        params: the parameters to measure.
        teacher: answer with the demonstration in context; omits prior skills, validation rows, and
            evaluations with eval.teacher=false.
        base: the parameters of the base model; None to read them from disk, or to use the base of adapters.
    """
    inputs = plan.first_inputs
    speaker = inputs.speaker(model, params)
    if base is None and not teacher:
        base = load_reference(speaker, plan.config, inputs.directory, inputs.directory)
    widths = widths_of(*(rows.encoded for _, rows in plan.rows.values()))
    count = functools.partial(answer_arrays, widths=widths, training=False, base=base is not None)
    directory = RunDirectory(plan.config.output)
    with explained("an evaluation", plan.config, model, count, directory=directory):
        return {
            name: as_json(
                _evaluate(plan.reporter, name, speaker, rows, config, teacher=teacher, base=base), rows
            )
            for name, (config, rows) in plan.rows.items()
            if not teacher or _has_teacher(name, config)
        }


def _has_teacher(name: str, config: Config) -> bool:
    """Return True if the teacher is evaluated on these rows."""
    return config.eval.teacher and name != PRIOR and not name.startswith(VALIDATION)


def as_json(evaluation: Evaluation, rows: EvalSet) -> dict[str, Any]:
    """Return an evaluation as JSON: accuracy, length, KL, the skill of each row, verdicts, completions, and
    the number of the scorer's faults, if any.
    """
    skills = [example.skill for example in rows.examples]
    faults = {"scorer_faults": len(evaluation.faults)} if evaluation.faults else {}
    return (
        ({"skills": skills} if any(skills) else {})
        | faults
        | {
            "accuracy": evaluation.accuracy,
            "length": evaluation.mean_length,
            "kl_to_base": evaluation.kl_to_base,
            "correct": [int(verdict) for verdict in evaluation.correct],
            "completions": list(evaluation.completions),
        }
    )


def _once(
    plan: Plan,
    file: Path,
    work: Callable[[], Any],
    is_valid: Callable[[Plan, Any], bool],
    redo: bool = False,
) -> Any:
    """Return the content of `file`, or the result of `work`, which is then written to it.

    The work is done again if `redo`, or if the content is damaged or not `is_valid`.
    """
    if file.exists() and not redo:
        try:
            return _read_results(plan, file, is_valid)
        except SdftError as error:
            plan.reporter.print(f"{error}")
    result = work()
    if plan.reporter.writes:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(result))
    return result


def _read_results(plan: Plan, file: Path, is_valid: Callable[[Plan, Any], bool]) -> Any:
    """Return the results in a file. Raises SdftError if it is damaged."""
    remedy = "it is damaged, and the work is done again"
    results = read_json(file, remedy, object)
    if not is_valid(plan, results):
        raise SdftError(f"{file} does not hold the results of these evaluations: {remedy}.")
    return results


def _is_base(plan: Plan, value: Any) -> bool:
    """Return True for the results of `measure_base`."""
    return (
        isinstance(value, dict)
        and value.keys() == ({"student", "teacher"} if plan.config.eval.teacher else {"student"})
        and _is_measured(plan, value["student"])
        and _is_measured(plan, value.get("teacher", {}), teacher=True)
    )


def _is_oracle(plan: Plan, value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(plan.stages)
        and all(_is_measured(plan, one) for one in value)
    )


def _is_measured(plan: Plan, value: Any, teacher: bool = False) -> bool:
    """Return True for the results of `measure` on the rows of the plan."""
    rows = {
        name: rows for name, (config, rows) in plan.rows.items() if not teacher or _has_teacher(name, config)
    }
    return (
        isinstance(value, dict)
        and value.keys() == rows.keys()
        and all(_is_evaluation(value[name], rows[name]) for name in rows)
    )


def _is_evaluation(value: Any, rows: EvalSet) -> bool:
    """Return True for the result of `as_json` on these rows."""
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(name)) for name in ("accuracy", "length"))
        and (value.get("kl_to_base") is None or _is_number(value["kl_to_base"]))
        and isinstance(value.get("correct"), list)
        and len(value["correct"]) == len(rows.examples)
        and set(map(repr, value["correct"])) <= {"0", "1"}
        and value.get("skills") in (None, [example.skill for example in rows.examples])
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1 << 31
