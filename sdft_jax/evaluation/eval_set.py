"""The rows of an evaluation: reading, validation and tokenization."""

from __future__ import annotations

import dataclasses

from sdft_jax.config import Config
from sdft_jax.data.encoding import Dropped, Encoded, PromptFormat, encode_all
from sdft_jax.data.examples import Example
from sdft_jax.data.sources import make_examples, read_rows
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.tasks import validate


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Rows to answer and score, and their tokens; `encoded[i]` belongs to `examples[i]`."""

    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    dropped: Dropped


def load_eval_set(path: str, config: Config, format: PromptFormat, teacher: bool) -> EvalSet:
    """Return the rows of an evaluation source; see `read_eval` and `encode_eval`."""
    return encode_eval(read_eval(path, config, teacher), config, format, teacher)


def read_eval(path: str, config: Config, teacher: bool) -> list[Example]:
    """Return the rows of an evaluation source; each has an answer and, if `teacher`, the teacher's context.

    Raises:
        SdftError: a field is missing, or the task cannot score an answer.
    """
    data = dataclasses.replace(config.data, limit=config.eval.limit)
    rows = read_rows(path, data.split)
    try:
        examples = make_examples(rows, data, path, demonstration=False, context=teacher, answer=True)
    except SdftError as error:
        if not teacher or not config.method.trains:
            raise
        raise SdftError(f"{error} If the rows have no demonstrations, set eval.teacher=false.") from None
    validate(config.eval.task, examples)
    return examples


def encode_eval(examples: list[Example], config: Config, format: PromptFormat, teacher: bool) -> EvalSet:
    """Return the rows that are within the length limits, with their tokens."""
    encoded, dropped = encode_all(examples, format, config.data, teacher=teacher)
    by_row = {example.row: example for example in examples}
    return EvalSet(tuple(by_row[row.row] for row in encoded), tuple(encoded), dropped)
