"""Using a model without training it: its accuracy on a file, and its answers to prompts."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from sdft_jax.config import Config
from sdft_jax.data import find_buckets, pad_batch
from sdft_jax.distributed import collect
from sdft_jax.errors import SdftError
from sdft_jax.evaluation import Evaluation, decode, evaluate
from sdft_jax.exhaustion import explained
from sdft_jax.export import load_run, run_config
from sdft_jax.hub import model_directory
from sdft_jax.memory import answer_arrays, widths_of
from sdft_jax.models import Model, load_model
from sdft_jax.prepare import EvalSet, prepare_eval
from sdft_jax.prompts import Example, encode_all, eos_ids, load_tokenizer
from sdft_jax.report import summary_table
from sdft_jax.sampling import generate
from sdft_jax.sharding import sharding_from
from sdft_jax.state import check_rows, sharding_of
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
    directory, tokenizer, eos = _tokenizer(config)
    rows = prepare_eval(config.eval.path, config, tokenizer, eos, config.eval.teacher)
    model, params = _load(config, directory)
    roles = {"student": False} | ({"teacher": True} if config.eval.teacher else {})
    count = functools.partial(answer_arrays, widths=widths_of(rows.encoded), training=False)
    with explained("the evaluation", config, model, count):
        found = {
            role: evaluate(
                model, params, rows, tokenizer, eos, config, teacher=shown, active=active, description=role
            )
            for role, shown in roles.items()
        }  # fmt: skip
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


def answer(config: Config, prompts: Sequence[str], n: int = 1) -> list[list[str]]:
    """`n` completions of each prompt, sampled by `config.sampling`."""
    directory, tokenizer, eos = _tokenizer(config)
    examples = [Example(text, "", None, row, "prompt") for row, text in enumerate(prompts)]
    data = dataclasses.replace(config.data, overlong="error", prompt_buckets=(), teacher_buckets=())
    encoded, _ = encode_all(examples, tokenizer, data, eos=eos, teacher=False)
    model, params = _load(config, directory)
    repeated = [row for row in encoded for _ in range(n)]
    parts = sharding_of(model).size("batch")
    filled = -(-len(repeated) // parts) * parts  # the mesh must divide them
    batch = pad_batch(repeated, find_buckets(encoded, data), tokenizer.pad_token_id, size=filled)
    rollout = generate(
        model, params, batch.prompt, batch.prompt_mask, key=jax.random.key(config.train.seed), eos_ids=eos,
        pad_id=tokenizer.pad_token_id, **dataclasses.asdict(config.sampling),
    )  # fmt: skip
    ids, mask = collect((rollout.tokens, rollout.mask))
    texts = [decode(tokenizer, row[keep]) for row, keep in zip(ids, mask, strict=True)][: len(repeated)]
    return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]


def _is_run(path: str) -> bool:
    return (Path(path) / "checkpoints").is_dir()


def _tokenizer(config: Config) -> tuple[str, Any, tuple[int, ...]]:
    """(directory, tokenizer, EOS) of a model, or of the model that a run has trained."""
    path = config.model.path
    directory = model_directory(run_config(path).model.path if _is_run(path) else path)
    tokenizer = load_tokenizer(directory)
    return directory, tokenizer, eos_ids(tokenizer, directory)


def _load(config: Config, directory: str) -> tuple[Model, Params]:
    """A model directory, or the newest checkpoint of a run directory."""
    if _is_run(config.model.path):
        return load_run(config.model.path, sharding=sharding_from(config))[:2]
    return load_model(
        directory, dtype=config.model.param_dtype, sharding=sharding_from(config),
        compute_dtype=config.model.compute_dtype,
    )  # fmt: skip
