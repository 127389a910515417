"""One evaluation within a run: the accuracy on each set of rows, and the distance from the base."""

from __future__ import annotations

import functools
from typing import Any

from sdft_jax.config import Config
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.grading import Fault, fault_note
from sdft_jax.evaluation.scoring import Evaluation, evaluate
from sdft_jax.models import distance, load_model
from sdft_jax.models.lora import base_params
from sdft_jax.models.speaker import Speaker
from sdft_jax.reporting.reporter import SILENT, Reporter
from sdft_jax.training.inputs import Inputs
from sdft_jax.types import Params


def evaluate_run(
    speaker: Speaker, config: Config, inputs: Inputs, base: str, before: bool, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Return the accuracies in [0, 1], mean lengths in tokens and distances in nats per token of a run's
    model.

    Args:
        speaker: the model.
        config: its `eval` section selects what to measure. The new skill of a method that does not train (the
            oracle) is evaluated with the demonstration in context.
        inputs: the rows.
        base: the directory of the model that is the reference of distances.
        before: True before training, when the teacher's ceiling is measured, and distances only if the run
            did not start from the base.
        reporter: shows progress bars.

    Returns:
        `accuracy`, `length`, `kl_to_base_new` and `teacher` on eval.path, `validation` on eval.validation,
        `prior` and `kl_to_base` on eval.prior, `distance` of the weights, and `scorer_faults`, the number of
        answers on which the scorer failed; measurements that were not made, and a number of 0, are missing.
    """
    moved = not before or base != inputs.directory or config.lora.adapter is not None
    row: dict[str, Any] = {"distance": distance(speaker.model, speaker.params, base)} if moved else {}
    compared = moved and (inputs.new or inputs.prior)
    reference = load_reference(speaker, config, inputs.directory, base) if compared else None

    faults: list[Fault] = []

    def measure(rows: EvalSet, name: str, teacher: bool = False, base: Params | None = None) -> Evaluation:
        track = functools.partial(reporter.track, description=name)
        evaluation = evaluate(speaker, rows, config, teacher=teacher, base=base, track=track)
        faults.extend(evaluation.faults)
        return evaluation

    context = not config.method.trains
    if inputs.new:
        new = measure(inputs.new, "new skill", context, reference)
        row |= {"accuracy": new.accuracy, "length": new.mean_length} | _known("kl_to_base_new", new)
        if config.eval.teacher and before:
            row["teacher"] = measure(inputs.new, "teacher", teacher=True).accuracy
    if inputs.validation:
        row["validation"] = measure(inputs.validation, "validation", context).accuracy
    if inputs.prior:
        prior = measure(inputs.prior, "old skills", base=reference)
        row |= {"prior": prior.accuracy} | _known("kl_to_base", prior)
    reporter.print(*fault_note(faults, config))
    return row | ({"scorer_faults": len(faults)} if faults else {})


def load_reference(speaker: Speaker, config: Config, directory: str, base: str) -> Params:
    """Return the parameters in the directory `base`, from which distances are measured.

    If the model has adapters of that base, in `directory`, they are the arrays in memory.
    """
    if speaker.model.architecture.lora and base == directory:
        return base_params(speaker.params)
    return load_model(base, dtype=config.model.param_dtype, sharding=speaker.model.sharding)[1]


def _known(name: str, evaluation: Evaluation) -> dict[str, float]:
    return {} if evaluation.kl_to_base is None else {name: evaluation.kl_to_base}
