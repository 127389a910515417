"""`sdft evaluate`: the accuracy of a model on a file, alone and with the demonstration in context."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path

from sdft_jax.algorithm import check_rows
from sdft_jax.config import Config, sharding_from
from sdft_jax.data.encoding import PromptFormat
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import EvalSet, encode_eval, read_eval
from sdft_jax.evaluation.scoring import Evaluation, evaluate, fault_note
from sdft_jax.files import write_errors, write_text
from sdft_jax.plan.footprint import answer_arrays, widths_of
from sdft_jax.reporting.reporter import Reporter, process_reporter
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training.export import load_prompt_format, load_speaker
from sdft_jax.training.out_of_memory import explained
from sdft_jax.training.processes import require_same, together


def run(config: Config, out: str | None = None) -> dict[str, Evaluation]:
    """Evaluate the student and, if `eval.teacher`, the teacher; print a table.

    All processes evaluate; process 0 prints and writes.

    Args:
        config: its `eval` section selects the rows and the task.
        out: the file to write one JSON line per row to, with answers and verdicts; None for no file.

    Raises:
        SdftError: a mistake in the configuration or the rows, or out of memory.
    """
    reporter = process_reporter()
    if out:
        _check_writable(Path(out))
    if config.eval.path is None:
        raise SdftError("eval.path is not set: set it to a file of prompts with answers.")
    check_rows(config.eval.batch_size, "eval.batch_size", sharding_from(config))
    rows, format = together(functools.partial(_load, config))
    require_same({"the evaluation rows": len(rows.encoded)}, "with the same data")
    speaker = load_speaker(config, format)
    roles = {"student": False} | ({"teacher": True} if config.eval.teacher else {})
    count = functools.partial(answer_arrays, widths=widths_of(rows.encoded), training=False)
    with explained("the evaluation", config, speaker.model, count):
        evaluations = {
            role: evaluate(
                speaker,
                rows,
                config,
                teacher=teacher,
                track=functools.partial(reporter.track, description=role),
            )
            for role, teacher in roles.items()
        }
    if reporter.writes:
        _report(reporter, config, evaluations, rows)
        if out:
            with write_errors(out, "fix this, or give another file, and run the command again"):
                _write(Path(out), evaluations, rows)
    return evaluations


def _load(config: Config) -> tuple[EvalSet, PromptFormat]:
    """Return the rows, and the prompt format of the model."""
    examples = read_eval(str(config.eval.path), config, config.eval.teacher)
    format = load_prompt_format(config)
    return encode_eval(examples, config, format, config.eval.teacher), format


def _check_writable(file: Path) -> None:
    """Raise SdftError, before the work, if a file cannot be written."""
    if not file.absolute().parent.is_dir():
        raise SdftError(
            f"{file} cannot be written, since its directory does not exist: create the directory first."
        )
    if file.is_dir():
        raise SdftError(f"{file} is a directory: give the name of a file.")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise SdftError(f"{file} cannot be written (Permission denied): give another file.")


def _report(reporter: Reporter, config: Config, evaluations: Mapping[str, Evaluation], rows: EvalSet) -> None:
    faults = [fault for evaluation in evaluations.values() for fault in evaluation.faults]
    table = [
        {
            "role": role,
            "accuracy": evaluation.accuracy,
            "correct": f"{sum(evaluation.correct)}/{len(evaluation.correct)}",
            "mean tokens": evaluation.mean_length,
        }
        | ({"scorer faults": len(evaluation.faults)} if faults else {})
        for role, evaluation in evaluations.items()
    ]
    reporter.print(summary_table(table, f"{config.eval.path}, scored by {config.eval.task}"))
    reporter.print(*fault_note(faults, config))
    if rows.dropped.total:
        reporter.print(f"dropped {rows.dropped.total} rows: {rows.dropped}")


def _write(file: Path, evaluations: Mapping[str, Evaluation], rows: EvalSet) -> None:
    faults = {
        role: {fault.index: {"fault": fault.reason} for fault in evaluation.faults}
        for role, evaluation in evaluations.items()
    }
    lines = (
        {"row": example.row, "answer": example.answer}
        | {
            role: {"completion": evaluation.completions[i], "correct": evaluation.correct[i]}
            | faults[role].get(i, {})
            for role, evaluation in evaluations.items()
        }
        for i, example in enumerate(rows.examples)
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if file.exists() and not (file.is_file() and os.access(file.absolute().parent, os.W_OK)):
        file.write_text(text, encoding="utf-8")  # such as /dev/stdout, which cannot be replaced
    else:
        write_text(file, text)
