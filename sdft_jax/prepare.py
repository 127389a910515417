"""Everything that can be wrong with model files and data is found here, before any long work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sdft_jax.config import Config
from sdft_jax.data import examples, read_rows
from sdft_jax.hub import model_directory
from sdft_jax.models import open_checkpoint, read_config
from sdft_jax.prompts import Dropped, Encoded, Example, encode_all, eos_ids, load_tokenizer
from sdft_jax.report import bar
from sdft_jax.tasks import validate


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Rows to be scored, and their tokens; `encoded[i]` belongs to `examples[i]`."""

    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    dropped: Dropped


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Tokenizer, training rows and evaluation rows of a run."""

    directory: str
    tokenizer: Any
    eos: tuple[int, ...]
    pad_id: int
    train: tuple[Encoded, ...]
    dropped: Dropped
    new: EvalSet | None
    prior: EvalSet | None


def prepare(config: Config, active: bool = True) -> Prepared:
    """Read and tokenise all that a run needs. Raises SdftError with the culprit and the remedy."""
    directory = model_directory(config.model.path)
    open_checkpoint(directory, read_config(directory))
    tokenizer = load_tokenizer(directory)
    eos = eos_ids(tokenizer, directory)
    rows = examples(read_rows(config.data.path, config.data.split), config.data, config.data.path)
    imitates = config.sampling.max_new_tokens if config.train.method == "sft" else None
    with bar("tokenising", len(rows), active=active) as show:
        encoded, dropped = encode_all(
            rows, tokenizer, config.data, eos=eos, max_completion=imitates, progress=lambda n, _: show(n, "")
        )
    new = prepare_eval(config.eval.path, config, tokenizer, eos, config.eval.teacher)
    prior = prepare_eval(config.eval.prior, config, tokenizer, eos, teacher=False)
    return Prepared(directory, tokenizer, eos, tokenizer.pad_token_id, tuple(encoded), dropped, new, prior)


def prepare_eval(
    path: str | None, config: Config, tokenizer: Any, eos: Sequence[int], teacher: bool
) -> EvalSet | None:
    """The rows of an evaluation file; all need answers, and demonstrations where a teacher is measured."""
    if path is None:
        return None
    data = dataclasses.replace(config.data, limit=config.eval.limit, prompt_buckets=(), teacher_buckets=())
    rows = examples(read_rows(path, data.split), data, path, demonstration=teacher, answer=True)
    validate(config.eval.task, rows)
    encoded, dropped = encode_all(rows, tokenizer, data, eos=eos, teacher=teacher)
    by_row = {example.row: example for example in rows}
    return EvalSet(tuple(by_row[e.row] for e in encoded), tuple(encoded), dropped)
