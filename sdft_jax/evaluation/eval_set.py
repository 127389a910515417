"""The rows of an evaluation: reading, validation and tokenization."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from sdft_jax.config import Config
from sdft_jax.data.encoding import Dropped, Encoded, PromptFormat, encode_all, turn_text
from sdft_jax.data.examples import Example
from sdft_jax.data.messages import tool_calls
from sdft_jax.data.sources import make_examples, read_rows
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.grading import check_scorer
from sdft_jax.evaluation.scorers import get_scorer, validate


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
    """Return the rows of an evaluation source, or the turns of its traces.

    Each has an answer and, if `teacher`, the teacher's context: of several demonstrations the first one.

    Raises:
        SdftError: a field is missing, or the task cannot score an answer.
    """
    check_scorer(config)
    data = dataclasses.replace(config.data, limit=config.eval.limit)
    rows = read_rows(path, data.split)
    read = functools.partial(make_examples, rows, data, path, demonstration=False, answer=True)
    try:
        examples = read(context=teacher)
    except SdftError as error:
        if not teacher or not config.method.trains:
            raise
        read(context=False)  # raises the same error, unless it is one of the demonstrations
        raise SdftError(f"{error} If the rows have no demonstrations, set eval.teacher=false.") from None
    examples = _with_references([dataclasses.replace(x, others=()) for x in examples], config)
    validate(config.eval.task, examples)
    return examples


def _with_references(examples: list[Example], config: Config) -> list[Example]:
    """Return examples of which those of traces have a reference.

    For task toolcalls, that is the tool calls of the turn, and every turn is evaluated. For other tasks, it
    is the row's answer, and the last turn is evaluated.

    Raises:
        SdftError: traces have no answers.
    """
    if config.eval.task == "toolcalls":
        return [
            example
            if isinstance(example.demonstration, str)
            else dataclasses.replace(example, answer=tool_calls(example.demonstration))
            for example in examples
        ]
    answered = [example for example in examples if example.turn is None or example.answer is not None]
    if not answered:
        raise SdftError(
            f"{examples[0].source}: no trace has field {config.data.answer!r}, the reference of its last "
            "turn: add it, name another field with data.answer=FIELD, or set eval.task=toolcalls."
        )
    return answered


def encode_eval(examples: list[Example], config: Config, format: PromptFormat, teacher: bool) -> EvalSet:
    """Return the rows that are within the length limits, with their tokens."""
    encoded, dropped = encode_all(examples, format, config.data, teacher=teacher)
    by_id = {example.id: example for example in examples}
    rows = EvalSet(tuple(by_id[row.row, row.turn] for row in encoded), tuple(encoded), dropped)
    if config.eval.task == "toolcalls":
        _require_readable(rows.examples, format)
    return rows


def _require_readable(examples: Sequence[Example], format: PromptFormat) -> None:
    """Raise SdftError if the scorer of tool calls cannot read those of the chat template."""
    for example in examples:
        if not isinstance(example.demonstration, str) and example.answer:
            text = turn_text(example, format)
            if not get_scorer("toolcalls")(text, example):
                raise SdftError(
                    f"{example.location}: eval.task=toolcalls does not read the tool calls of this model's "
                    f"chat template, such as {text[:200]!r}: use another task, or a model with the format of "
                    "Qwen2.5, Qwen3 or Llama 3."
                )
            return  # all others are rendered by the same template
