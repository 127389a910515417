"""One model, stage after stage: train, measure every task and the prior skills, go on from where it ended.

Each stage of each arm is a run of `training.train` in a directory of its own that starts from the weights the
stage before left, and so does its teacher. What is finished is on disk and is not done again, and a stage
that was killed resumes as any run does: the whole is bit-identical to one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.algorithm.state import sharding_of
from sdft_jax.config import Config
from sdft_jax.config.devices import sharding_from
from sdft_jax.continual.stages import (
    PRIOR,
    Arm,
    Stage,
    directory_of,
    joined,
    on_arm,
    prepare_all,
    prepare_joint,
    stages_of,
    suites_of,
)
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.scoring import Evaluation, evaluate
from sdft_jax.models import Model, load_model, save_pretrained
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.plan.footprint import answer_arrays, widths_of
from sdft_jax.training.inputs import Prepared, refuse_examined, trained_prompts
from sdft_jax.training.loop import Watch, train
from sdft_jax.training.out_of_memory import explained
from sdft_jax.types import Params

Measured = dict[str, dict[str, Any]]
"""For tasks, `prior` and other suites: accuracy, length, kl_to_base (or None), verdicts, completions."""

MEASURED = "measured.json"
VALIDATION = "validation/"
"""What precedes a task's name where its validation rows are meant."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the arms of one run share."""

    config: Config
    stages: tuple[Stage, ...]
    prepared: Mapping[str, tuple[Prepared, ...]]
    """For each method, every stage's tokens."""
    active: bool
    suites: Mapping[str, tuple[Config, EvalSet]] = dataclasses.field(default_factory=dict)
    """Further questions that are measured with everything else."""

    @property
    def rows(self) -> dict[str, tuple[Config, EvalSet]]:
        """What tasks, stages' validation and the prior suite are measured on, and by which settings."""
        prepared = next(iter(self.prepared.values()))
        pairs = list(zip(self.stages, prepared, strict=True))
        tasks = {stage.name: (stage.config, tokens.new) for stage, tokens in pairs}
        validation = {
            f"{VALIDATION}{stage.name}": (stage.config, tokens.validation) for stage, tokens in pairs
        }
        prior = {PRIOR: (self.config, prepared[0].prior)}
        every = tasks | validation | dict(self.suites) | prior
        return {name: (config, rows) for name, (config, rows) in every.items() if rows}


def make_plan(config: Config, methods: Sequence[str], active: bool) -> Plan:
    """Read and tokenise everything. Raises SdftError for what is wrong with the data of any stage."""
    stages = stages_of(config)
    prepared = prepare_all(stages, methods, active)
    plan = Plan(config, stages, prepared, active, suites_of(config, prepared[methods[0]][0]))
    _refuse_overlap(plan)
    return plan


def _refuse_overlap(plan: Plan) -> None:
    """No stage may train on what another stage's evaluation, a suite or the prior suite asks."""
    for method, stages in plan.prepared.items():
        for stage, tokens in zip(plan.stages, stages, strict=True):
            trained = trained_prompts(method, stage.config.data, tokens)
            for name, (config, rows) in plan.rows.items():
                path = config.eval.validation if name.startswith(VALIDATION) else config.eval.path
                refuse_examined(trained, config.eval, config.eval.prior if name == PRIOR else path, rows)


def measure_base(plan: Plan) -> dict[str, Measured]:
    """The model before any training, as `student` and, on the tasks, as `teacher` with the demonstration."""
    file = Path(plan.config.output) / "base.json"
    return _once(file, plan.active, lambda: _measure_base(plan))


def _measure_base(plan: Plan) -> dict[str, Measured]:
    config = plan.config
    prepared = next(iter(plan.prepared.values()))[0]
    model, params = load_model(
        prepared.directory,
        dtype=config.model.param_dtype,
        sharding=sharding_from(config),
        compute_dtype=config.model.compute_dtype,
    )
    found = {"student": measure(plan, model, params)}
    if config.eval.teacher:
        found["teacher"] = measure(plan, model, params, teacher=True, base=params)
    return found


def run_arm(plan: Plan, arm: Arm, sweep: bool) -> list[Measured]:
    """Train one arm through all stages, or as far as it is not done yet; what was measured after each."""
    if arm.method == "oracle":
        return _once(
            Path(plan.config.output) / arm.name / MEASURED,
            plan.active,
            lambda: [_oracle(plan)] * len(plan.stages),
        )
    stages, prepared = plan.stages, plan.prepared[arm.method]
    if arm.method == "joint":
        stages, prepared = (joined(stages),), (prepare_joint(prepared),)
    start, measured = plan.config.model.path, []
    for number, (stage, tokens) in enumerate(zip(stages, prepared, strict=True)):
        output = directory_of(plan.config, arm, number, stage)
        handoff = output / "handoff" if number + 1 < len(stages) else None
        config = on_arm(stage, arm, sweep, str(output), start)
        measured.append(
            _once(
                output / MEASURED,
                plan.active,
                functools.partial(_run_stage, plan, stage, config, tokens, handoff),
            )
        )
        start = str(handoff)
    return measured


def _run_stage(
    plan: Plan, stage: Stage, config: Config, prepared: Prepared, handoff: Path | None
) -> Measured:
    """Train one stage and measure the model that it leaves; `handoff` gets it in full precision."""
    prepared = dataclasses.replace(prepared, directory=model_directory(config.model.path))
    watched = config.train.eval_every > 0
    if not watched and config.train.choose == "last":  # nothing goes by evaluations: measured once, below
        prepared = dataclasses.replace(prepared, new=None, validation=None, prior=None)
    done = train(config, prepared, active=plan.active, watch=_others(plan, stage) if watched else None)
    if handoff:
        save_pretrained(done.model, done.params, None, handoff, dtype=config.model.param_dtype)
    return measure(plan, done.model, done.params)


def _others(plan: Plan, stage: Stage) -> Watch:
    """Accuracy on the tasks of all other stages, as `accuracy/TASK`."""
    prepared = next(iter(plan.prepared.values()))[0]
    names = {other.name for other in plan.stages} - {stage.name}
    rows = {name: where for name, where in plan.rows.items() if name in names}

    def watch(model: Model, params: Params) -> Mapping[str, float]:
        return {
            f"accuracy/{name}": evaluate(
                model,
                params,
                part,
                prepared.tokenizer,
                prepared.eos,
                config,
                description=name,
                active=plan.active,
            ).accuracy
            for name, (config, part) in rows.items()
        }

    return watch


def _oracle(plan: Plan) -> Measured:
    """No training: tasks are answered with the demonstration in context, prior skills without."""
    base = measure_base(plan)
    return base["student"] | base.get("teacher", {})


def measure(
    plan: Plan, model: Model, params: Params, teacher: bool = False, base: Params | None = None
) -> Measured:
    """Accuracy, mean length and distance from the base on every task and on the prior skills.

    Args:
        plan: tasks, prior skills and the base model.
        model, params: what is measured.
        teacher: with the demonstration in context; left out are the prior suite, validation, and what has
            eval.teacher=false.
        base: the base model's parameters, read from its files unless given.
    """
    prepared = next(iter(plan.prepared.values()))[0]
    if base is None and not teacher:
        base = load_model(
            prepared.directory, dtype=plan.config.model.param_dtype, sharding=sharding_of(model)
        )[1]
    widths = widths_of(encoded for _, rows in plan.rows.values() for encoded in rows.encoded)
    count = functools.partial(answer_arrays, widths=widths, training=False, base=base is not None)
    with explained("an evaluation", plan.config, model, count, output=plan.config.output):
        return {
            name: numbers(
                evaluate(
                    model,
                    params,
                    rows,
                    prepared.tokenizer,
                    prepared.eos,
                    config,
                    teacher=teacher,
                    base=base,
                    description=name,
                    active=plan.active,
                ),
                rows,
            )
            for name, (config, rows) in plan.rows.items()
            if not teacher or _is_shown(name, config)
        }


def _is_shown(name: str, config: Config) -> bool:
    """Whether a teacher is measured there."""
    return config.eval.teacher and name != PRIOR and not name.startswith(VALIDATION)


def numbers(evaluation: Evaluation, rows: EvalSet) -> dict[str, Any]:
    """An evaluation as JSON, with every completion and the verdict on it."""
    skills = [example.skill for example in rows.examples]
    return ({"skills": skills} if any(skills) else {}) | {
        "accuracy": evaluation.accuracy,
        "length": evaluation.mean_length,
        "kl_to_base": evaluation.kl_to_base,
        "correct": [int(right) for right in evaluation.correct],
        "completions": list(evaluation.completions),
    }


def _once(file: Path, active: bool, work: Callable[[], Any]) -> Any:
    """What `file` holds, or the result of `work`, which is then written to it."""
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    found = work()
    if active:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(file)
    return found
