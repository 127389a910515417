"""Tasks by name: the scorer of a completion, and the validation of a reference answer."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable

from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.scorers import letter, rule, text, toolcalls, tooluse
from sdft_jax.evaluation.scorers.grade import Grade

Scorer = Callable[[str, Example], bool | Grade]


@dataclasses.dataclass(frozen=True)
class Task:
    """The scorer of a task, and the validation of its reference answers."""

    score: Scorer
    problem: Callable[[object], str | None]
    """A function that returns the problem with a reference answer, or None if the scorer can use it."""
    mismatch: Callable[[Example], str | None] | None = None
    """A function that returns the problem with a reference answer beside the prompt of its row, or None; None
    if the answer alone decides."""
    detail: Callable[[str, Example], str] | None = None
    """A function of a completion and its row that names what decided the verdict, such as the extraction that
    found the letter; None if there is nothing to add."""


def _score_embedded(module: str, function: str) -> Scorer:
    """Return the scorer of a built-in world; its module is imported at the first use."""

    def score(completion: str, example: Example) -> bool:
        row = {"answer": str(example.answer)}
        return getattr(importlib.import_module(module), function)(completion, row)

    return score


TASKS: dict[str, Task] = {
    "exact": Task(text.score_exact, text.problem),
    "contains": Task(text.score_contains, text.problem),
    "normalised": Task(text.score_normalised, text.problem_normalised),
    "choice": Task(text.score_choice, text.problem, letter.choice_mismatch),
    "letter": Task(letter.score, letter.problem, letter.mismatch, letter.detail),
    "tooluse": Task(tooluse.score, tooluse.problem),
    "tooluse_official": Task(tooluse.score_official, tooluse.problem),
    "tooluse_strict": Task(tooluse.score_strict, tooluse.problem),
    "toolcalls": Task(toolcalls.score, toolcalls.problem),
    "rule": Task(rule.score, rule.problem, detail=rule.detail),
    "judge": Task(text.score_normalised, text.problem_normalised),  # unless judge.url is set: `grade_all`
    "mini": Task(_score_embedded("sdft_jax.mini.lists", "score"), text.problem),
    "storms": Task(_score_embedded("sdft_jax.mini.storms", "score_strict"), text.problem),
}

GRADED = ("normalised", "judge")
"""Tasks whose scorers also give the grade PARTLY."""


def get_scorer(name: str) -> Scorer:
    """Return the scorer `(completion, example) -> correct, or grade` of a task.

    Raises:
        SdftError: the name is unknown.
    """
    return _task(name).score


def get_detail(name: str, completion: str, example: Example) -> str | None:
    """Return what decided a scorer's verdict on a completion; None if the scorer reports nothing."""
    detail = _task(name).detail
    return detail(completion, example) if detail else None


def validate(name: str, examples: Iterable[Example]) -> None:
    """Raise SdftError for the first example whose answer the task's scorer cannot use."""
    task = _task(name)
    for example in examples:
        problem = task.problem(example.answer) or (task.mismatch and task.mismatch(example))
        if problem:
            raise SdftError(f"{example.location}: eval.task={name} cannot use this row's answer: {problem}")


def _task(name: str) -> Task:
    if name not in TASKS:
        raise SdftError(f"eval.task={name!r} does not exist: use one of {', '.join(TASKS)}.")
    return TASKS[name]
