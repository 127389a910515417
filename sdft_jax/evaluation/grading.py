"""The grades of all answers of an evaluation, by a scorer or by a judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdft_jax.config import Config
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError, reason
from sdft_jax.evaluation.judge import check_judge, judge_all, prompt_name
from sdft_jax.evaluation.scorers import Scorer, get_scorer
from sdft_jax.evaluation.scorers.grade import Grade

Track = Callable[[Iterable], Iterator]
"""A function that yields items and shows a progress bar, such as
`functools.partial(reporter.track, description=...)`."""

_FAULT, _MISTAKE = -1, -2


@dataclasses.dataclass(frozen=True)
class Fault:
    """An exception that a scorer raised, or a grade that a judge did not give; the answer counts as wrong."""

    index: int
    """Index of the row in the evaluation's rows."""
    place: str
    """The source and the row."""
    reason: str


def grade_all(
    completions: Sequence[str], examples: Sequence[Example], config: Config, track: Track = iter
) -> list[Grade | Fault]:
    """Return the grade of each answer, or the fault of the scorer or the judge; see also `grade_together`.

    Args:
        completions: the answers.
        examples: the row of each answer; a row may have several.
        config: its `eval` and `judge` sections select the scorer.
        track: shows progress over the answers.

    Raises:
        SdftError: the judge's endpoint refuses every request, or its package is not installed.
    """
    if not is_judged(config):
        score = get_scorer(config.eval.task)
        pairs = track(list(zip(completions, examples, strict=True)))
        return [_score(score, text, example, i) for i, (text, example) in enumerate(pairs)]
    grades = judge_all(completions, examples, config.judge, track)
    return [
        grade if isinstance(grade, Grade) else Fault(i, examples[i].location, grade.reason)
        for i, grade in enumerate(grades)
    ]


def grade_together(
    completions: Sequence[str], examples: Sequence[Example], config: Config, track: Track = iter
) -> list[Grade | Fault]:
    """Return the same grades as `grade_all` on all processes, of which each one calls this function.

    Process 0 alone asks a judge, whose replies may differ. It alone has the reasons of faults. Progress is
    shown over the requests to a judge, if there is one process.
    """
    if not is_judged(config):
        return grade_all(completions, examples, config)
    if jax.process_count() == 1:
        return grade_all(completions, examples, config, track)
    order, failure = list(Grade), None
    places = [example.location for example in examples]
    grades: list[Grade | Fault] = [Fault(i, place, "see process 0") for i, place in enumerate(places)]
    codes = np.full(1 + len(completions), _FAULT, np.int32)
    if jax.process_index() == 0:
        try:
            grades = grade_all(completions, examples, config)
            codes[1:] = [_FAULT if isinstance(one, Fault) else order.index(one) for one in grades]
        except SdftError as error:
            failure, codes[0] = error, _MISTAKE
    codes = np.asarray(multihost_utils.broadcast_one_to_all(codes))
    if codes[0] == _MISTAKE:
        raise failure or SdftError("process 0 cannot use the judge: see its message.")
    return [one if code == _FAULT else order[code] for one, code in zip(grades, codes[1:], strict=True)]


def check_scorer(config: Config) -> None:
    """Raise SdftError, before the work, if the judge of a configuration cannot be used."""
    if is_judged(config):
        check_judge(config.judge)


def is_judged(config: Config) -> bool:
    """Return True if an endpoint grades the answers."""
    return config.eval.task == "judge" and config.judge.url is not None


def scorer_name(config: Config) -> str:
    """Return the name of the scorer, for titles."""
    if is_judged(config):
        return f"{config.judge.model} with the prompt {prompt_name(config.judge.prompt)}"
    if config.eval.task == "judge":
        return "normalised, not by a judge, since judge.url is not set"
    return config.eval.task


def fault_note(faults: Sequence[Fault], config: Config) -> list[str]:
    """Return a sentence on the faults of the scorer, with the first rows; no sentence if there are none."""
    if not faults:
        return []
    rows = list(dict.fromkeys(f"{fault.place} ({fault.reason})" for fault in faults))
    named = "; ".join(rows[:3]) + (f"; and {len(rows) - 3} more" if len(rows) > 3 else "")
    if is_judged(config):
        return [
            f"the judge at {config.judge.url} gave no grade for {len(faults)} answers, which count as wrong: "
            f"{named}. All other grades are stored, and the same command asks for the missing ones only."
        ]
    scorer = f"the scorer of eval.task={config.eval.task}"
    return [f"{scorer} failed on {len(faults)} answers, which count as wrong: {named}."]


def _score(score: Scorer, completion: str, example: Example, index: int) -> Grade | Fault:
    """Return the grade of an answer, or the fault of a scorer that raises an exception of any type."""
    try:
        grade = score(completion, example)
    except Exception as error:
        return Fault(index, example.location, f"{type(error).__name__}: {reason(error)}")
    if isinstance(grade, Grade):
        return grade
    return Grade.CORRECT if grade else Grade.WRONG
