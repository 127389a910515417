"""One evaluation within a run: every skill, the distance from the base, the score, and whether to stop."""

from __future__ import annotations

from typing import Any

from sdft_jax.algorithm.state import sharding_of
from sdft_jax.config import Config
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.scoring import Evaluation, evaluate
from sdft_jax.models import Model, distance, load_model
from sdft_jax.training.inputs import Prepared
from sdft_jax.types import Params


def assess(
    model: Model, params: Params, config: Config, prepared: Prepared, base: str, step: int, active: bool
) -> dict[str, Any]:
    """Accuracies in [0, 1], mean lengths in tokens and distances in nats per token, whichever are asked for.

    Args:
        model, params: what is assessed.
        config: its `eval` section; with method oracle the new skill is asked with the demonstration.
        prepared: the rows.
        base: directory of the model that distances are measured from.
        step: 0 before training; the teacher's ceiling is measured then.
        active: show progress bars.

    Returns:
        `accuracy`, `length`, `kl_to_base_new` and `teacher` on eval.path, `validation` on eval.validation,
        `prior` and `kl_to_base` on eval.prior, and `distance` of the weights.
    """
    moved = step > 0 or base != prepared.directory
    row: dict[str, Any] = {"distance": distance(model, params, base)} if moved else {}
    origin = None
    if moved and (prepared.new or prepared.prior):
        origin = load_model(base, dtype=config.model.param_dtype, sharding=sharding_of(model))[1]

    def ask(rows: EvalSet, name: str, teacher: bool = False, base: Params | None = origin) -> Evaluation:
        return evaluate(
            model,
            params,
            rows,
            prepared.tokenizer,
            prepared.eos,
            config,
            base=base,
            description=name,
            teacher=teacher,
            active=active,
        )

    oracle = config.train.method == "oracle"

    if prepared.new:
        new = ask(prepared.new, "new skill", teacher=oracle)
        row |= {"accuracy": new.accuracy, "length": new.mean_length} | _known("kl_to_base_new", new)
        if config.eval.teacher and step == 0:
            row["teacher"] = ask(prepared.new, "teacher", teacher=True, base=None).accuracy
    if prepared.validation:
        row["validation"] = ask(prepared.validation, "validation", teacher=oracle, base=None).accuracy
    if prepared.prior:
        old = ask(prepared.prior, "old skills")
        row |= {"prior": old.accuracy} | _known("kl_to_base", old)
    return row


def _known(name: str, evaluation: Evaluation) -> dict[str, float]:
    return {} if evaluation.kl_to_base is None else {name: evaluation.kl_to_base}
