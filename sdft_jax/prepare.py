"""Everything that can be wrong with model files and data is found here, before any long work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sdft_jax.config import Config
from sdft_jax.data import examples, read_rows
from sdft_jax.errors import SdftError
from sdft_jax.hub import model_directory
from sdft_jax.models import open_checkpoint, read_config
from sdft_jax.prompts import Dropped, Encoded, Example, encode_all, eos_ids, load_template, load_tokenizer
from sdft_jax.report import bar
from sdft_jax.sharding import sharding_from
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
    """Read and tokenise all that a run needs, the cheap and the local first.

    Demonstrations become completions too where a method imitates them: then a row whose demonstration is
    over the limit is dropped for all methods, so that they see the same rows.

    Raises:
        SdftError: the culprit and the remedy.
    """
    sharding_from(config)
    load_template(config.data.template)
    rows = examples(read_rows(config.data.path, config.data.split), config.data, config.data.path)
    new = _read_eval(config.eval.path, config, config.eval.teacher)
    prior = _read_eval(config.eval.prior, config, teacher=False)
    directory = model_directory(config.model.path)
    open_checkpoint(directory, read_config(directory))
    tokenizer = load_tokenizer(directory)
    eos = eos_ids(tokenizer, directory)
    imitates = config.baseline or config.train.method == "sft"
    with bar("tokenising", len(rows), active=active) as show:
        encoded, dropped = encode_all(
            rows, tokenizer, config.data, eos=eos, progress=lambda done, _: show(done, ""),
            max_completion=config.sampling.max_new_tokens if imitates else None,
        )  # fmt: skip
    return Prepared(
        directory, tokenizer, eos, tokenizer.pad_token_id, tuple(encoded), dropped,
        None if new is None else _encode_eval(new, config, tokenizer, eos, config.eval.teacher),
        None if prior is None else _encode_eval(prior, config, tokenizer, eos, teacher=False),
    )  # fmt: skip


def prepare_eval(path: str, config: Config, tokenizer: Any, eos: Sequence[int], teacher: bool) -> EvalSet:
    """The rows of an evaluation file; all need answers, and demonstrations where a teacher is measured."""
    return _encode_eval(read_eval(path, config, teacher), config, tokenizer, eos, teacher)


def read_eval(path: str, config: Config, teacher: bool) -> list[Example]:
    """The same, before it is tokenised."""
    data = dataclasses.replace(config.data, limit=config.eval.limit)
    rows = read_rows(path, data.split)
    try:
        found = examples(rows, data, path, demonstration=teacher, answer=True)
    except SdftError as error:
        if not teacher:
            raise
        raise SdftError(f"{error} Without demonstrations, set eval.teacher=false.") from None
    validate(config.eval.task, found)
    return found


def _read_eval(path: str | None, config: Config, teacher: bool) -> list[Example] | None:
    return None if path is None else read_eval(path, config, teacher)


def _encode_eval(
    rows: list[Example], config: Config, tokenizer: Any, eos: Sequence[int], teacher: bool
) -> EvalSet:
    encoded, dropped = encode_all(rows, tokenizer, config.data, eos=eos, teacher=teacher)
    by_row = {example.row: example for example in rows}
    return EvalSet(tuple(by_row[e.row] for e in encoded), tuple(encoded), dropped)
