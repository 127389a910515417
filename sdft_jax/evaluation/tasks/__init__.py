"""Tasks: how a completion is scored, and what a row must bring for it."""

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
    """A scorer, and the complaint about an answer that it cannot use (None when it can)."""

    score: Scorer
    complaint: Callable[[object], str | None]


def _score_embedded(module: str, function: str) -> Scorer:
    """A scorer of an embedded world, which is imported when it is first used."""

    def score(completion: str, example: Example) -> bool:
        return getattr(importlib.import_module(module), function)(completion, {"answer": example.answer})

    return score


TASKS: dict[str, Task] = {
    "exact": Task(text.score_exact, text.complaint),
    "contains": Task(text.score_contains, text.complaint),
    "choice": Task(text.score_choice, text.complaint),
    "tooluse": Task(tooluse.score, tooluse.complaint),
    "mini": Task(_score_embedded("sdft_jax.mini.lists", "score"), text.complaint),
    "storms": Task(_score_embedded("sdft_jax.mini.storms", "score_strict"), text.complaint),
}


def get_scorer(name: str) -> Scorer:
    """The scorer `(completion, example) -> right?` of a task; SdftError with the names if there is none."""
    return _task(name).score


def validate(name: str, examples: Iterable[Example]) -> None:
    """Raises SdftError naming the first example whose answer the task's scorer cannot use."""
    task = _task(name)
    for example in examples:
        if complaint := task.complaint(example.answer):
            raise SdftError(
                f"{example.where}: eval.task={name} needs another answer than this row's: {complaint}"
            )


def _task(name: str) -> Task:
    if name not in TASKS:
        raise SdftError(f"eval.task={name!r}: there is no such scorer; choose one of {', '.join(TASKS)}.")
    return TASKS[name]
