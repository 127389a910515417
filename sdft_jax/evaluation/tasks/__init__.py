"""Tasks by name: the scorer of a completion, and the validation of a reference answer."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable

from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.tasks import text, tooluse

Scorer = Callable[[str, Example], bool]


@dataclasses.dataclass(frozen=True)
class Task:
    """The scorer of a task, and the validation of its reference answers."""

    score: Scorer
    problem: Callable[[object], str | None]
    """A function that returns the problem with a reference answer, or None if the scorer can use it."""


def _score_embedded(module: str, function: str) -> Scorer:
    """Return the scorer of a built-in world; its module is imported at the first use."""

    def score(completion: str, example: Example) -> bool:
        row = {"answer": str(example.answer)}
        return getattr(importlib.import_module(module), function)(completion, row)

    return score


TASKS: dict[str, Task] = {
    "exact": Task(text.score_exact, text.problem),
    "contains": Task(text.score_contains, text.problem),
    "choice": Task(text.score_choice, text.problem),
    "tooluse": Task(tooluse.score, tooluse.problem),
    "mini": Task(_score_embedded("sdft_jax.mini.lists", "score"), text.problem),
    "storms": Task(_score_embedded("sdft_jax.mini.storms", "score_strict"), text.problem),
}


def get_scorer(name: str) -> Scorer:
    """Return the scorer `(completion, example) -> correct` of a task. Raises SdftError for an unknown
    name.
    """
    return _task(name).score


def validate(name: str, examples: Iterable[Example]) -> None:
    """Raise SdftError for the first example whose answer the task's scorer cannot use."""
    task = _task(name)
    for example in examples:
        if problem := task.problem(example.answer):
            raise SdftError(f"{example.location}: eval.task={name} cannot use this row's answer: {problem}")


def _task(name: str) -> Task:
    if name not in TASKS:
        raise SdftError(f"eval.task={name!r} does not exist: use one of {', '.join(TASKS)}.")
    return TASKS[name]
