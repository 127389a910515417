"""Rows to be scored, read, checked and tokenised."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sdft_jax.config import Config
from sdft_jax.data import make_examples, read_rows
from sdft_jax.data.encoding import Dropped, Encoded, encode_all
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.tasks import validate


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Rows to be scored, and their tokens; `encoded[i]` belongs to `examples[i]`."""

    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    dropped: Dropped


def prepare_eval(path: str, config: Config, tokenizer: Any, eos: Sequence[int], teacher: bool) -> EvalSet:
    """The rows of an evaluation file; all need answers, and what a teacher is shown where one is measured."""
    return encode_eval(read_eval(path, config, teacher), config, tokenizer, eos, teacher)


def read_eval(path: str, config: Config, teacher: bool) -> list[Example]:
    """The same, before it is tokenised."""
    data = dataclasses.replace(config.data, limit=config.eval.limit)
    rows = read_rows(path, data.split)
    try:
        found = make_examples(rows, data, path, demonstration=False, context=teacher, answer=True)
    except SdftError as error:
        if not teacher or config.train.method == "oracle":
            raise
        raise SdftError(f"{error} Without demonstrations, set eval.teacher=false.") from None
    validate(config.eval.task, found)
    return found


def encode_eval(
    rows: list[Example], config: Config, tokenizer: Any, eos: Sequence[int], teacher: bool
) -> EvalSet:
    """The rows within the limits, with their tokens."""
    encoded, dropped = encode_all(rows, tokenizer, config.data, eos=eos, teacher=teacher)
    by_row = {example.row: example for example in rows}
    return EvalSet(tuple(by_row[e.row] for e in encoded), tuple(encoded), dropped)
