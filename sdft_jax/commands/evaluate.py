"""Using a model without training it: its accuracy on a file, and its answers to prompts."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from sdft_jax.algorithm.state import check_rows
from sdft_jax.config import Config
from sdft_jax.config.devices import sharding_from
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import EvalSet, prepare_eval
from sdft_jax.evaluation.scoring import Evaluation, evaluate
from sdft_jax.models import Model, load_model
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.models.hf.tokenizer import eos_ids, load_tokenizer
from sdft_jax.plan.footprint import answer_arrays, widths_of
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training.export import load_run, run_config
from sdft_jax.training.out_of_memory import explained
from sdft_jax.types import Params


def measure(config: Config, out: str | None = None) -> dict[str, Evaluation]:
    """Accuracy of the student, and of the teacher with the demonstration in context (`eval.teacher`).

    Prints a table; `out` gets a JSON line per row with both answers and verdicts. Of several processes all
    measure, and process 0 tells.
    """
    active = jax.process_index() == 0
    if out and not Path(out).absolute().parent.is_dir():
        raise SdftError(f"{out} cannot be written: its directory does not exist; make it, or give another.")
    if config.eval.path is None:
        raise SdftError("eval.path is not set: give a file to evaluate on.")
    check_rows(config.eval.batch_size, "eval.batch_size", sharding_from(config))
    directory, tokenizer, eos = model_tokenizer(config)
    rows = prepare_eval(config.eval.path, config, tokenizer, eos, config.eval.teacher)
    model, params = load_weights(config, directory)
    roles = {"student": False} | ({"teacher": True} if config.eval.teacher else {})
    count = functools.partial(answer_arrays, widths=widths_of(rows.encoded), training=False)
    with explained("the evaluation", config, model, count):
        found = {
            role: evaluate(
                model, params, rows, tokenizer, eos, config, teacher=shown, active=active, description=role
            )
            for role, shown in roles.items()
        }
    if active:
        _tell(config, found, rows, out)
    return found


def _tell(config: Config, found: Mapping[str, Evaluation], rows: EvalSet, out: str | None) -> None:
    table = [
        {
            "role": role,
            "accuracy": e.accuracy,
            "right": f"{sum(e.correct)}/{len(e.correct)}",
            "mean tokens": e.mean_length,
        }
        for role, e in found.items()
    ]
    console = Console()
    console.print(summary_table(table, f"{config.eval.path}, scored by {config.eval.task}"))
    if rows.dropped.total:
        console.print(f"dropped {rows.dropped.total} rows: {rows.dropped}", highlight=False)
    if out:
        lines = (
            {"row": example.row, "answer": example.answer}
            | {role: {"completion": e.completions[i], "correct": e.correct[i]} for role, e in found.items()}
            for i, example in enumerate(rows.examples)
        )
        Path(out).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _is_run(path: str) -> bool:
    return (Path(path) / "checkpoints").is_dir()


def model_tokenizer(config: Config) -> tuple[str, Any, tuple[int, ...]]:
    """(directory, tokenizer, EOS) of a model, or of the model that a run has trained."""
    path = config.model.path
    directory = model_directory(run_config(path).model.path if _is_run(path) else path)
    tokenizer = load_tokenizer(directory)
    return directory, tokenizer, eos_ids(tokenizer, directory)


def load_weights(config: Config, directory: str) -> tuple[Model, Params]:
    """A model directory, or the newest checkpoint of a run directory."""
    if _is_run(config.model.path):
        return load_run(config.model.path, sharding=sharding_from(config))[:2]
    return load_model(
        directory,
        dtype=config.model.param_dtype,
        sharding=sharding_from(config),
        compute_dtype=config.model.compute_dtype,
    )
