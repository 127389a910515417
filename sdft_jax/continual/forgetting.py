"""Forgetting: the change of each task's accuracy over the stages of a continual run.

`accuracy[i][j]` is the accuracy in [0, 1] on task j after stage i, with T + 1 rows and T columns. Row 0 is
before any training, and stage j + 1 trains task j.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.reporting.statistics import McNemar, mcnemar

Matrix = Sequence[Sequence[float]]
Items = Sequence[bool]
"""The verdict on each item of a task; the items have the same order after every stage."""


@dataclasses.dataclass(frozen=True)
class TaskRetention:
    """The changes of one task, as differences of accuracies."""

    task: str
    acquisition: float
    """The accuracy after its stage minus that before any training."""
    forgetting: float | None
    """The best accuracy since its stage minus the final accuracy; None for the last task."""
    since_base: McNemar | None
    """Items forgotten and gained between the base model and the end; None without verdicts."""
    since_learned: McNemar | None
    """Items forgotten and gained between its stage and the end; None without verdicts, and for the last
    task."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """The changes of all tasks and of the prior skills."""

    average_accuracy: float
    """The mean accuracy over tasks at the end."""
    backward_transfer: float | None
    """The mean change of all tasks but the last since their stages, negative for forgetting; None for one
    stage."""
    tasks: tuple[TaskRetention, ...]
    general_forgetting: tuple[float, ...] | None
    """The prior accuracy before any training minus that after each of the T stages; None without prior
    skills."""
    prior_since_base: McNemar | None
    """Prior items forgotten and gained between the base model and the end; None without verdicts."""


def measure_retention(
    tasks: Sequence[str],
    accuracy: Matrix,
    prior: Sequence[float] | None = None,
    verdicts: Sequence[Sequence[Items]] | None = None,
    prior_verdicts: Sequence[Items] | None = None,
) -> Retention:
    """Return the metrics of a sequence of stages.

    Args:
        tasks: T names, in the order of their stages.
        accuracy: [T + 1][T] accuracies, as in the module's docstring.
        prior: [T + 1] accuracies on prior skills.
        verdicts: [T + 1][T][items of the task].
        prior_verdicts: [T + 1][items of the prior skills].

    Raises:
        SdftError: the arguments differ in the number of stages, tasks or items.
    """
    matrix = _matrix(accuracy)
    stages = len(matrix) - 1
    _check_rows("tasks", len(tasks), stages)
    for name, rows in (("prior", prior), ("verdicts", verdicts), ("prior_verdicts", prior_verdicts)):
        if rows is not None:
            _check_rows(name, len(rows), stages + 1)
    for i, row in enumerate(verdicts or ()):
        _check_rows(f"verdicts[{i}]", len(row), stages)
    gained, lost = acquisition(accuracy), (*forgetting(accuracy), None)
    changes = [_changes(verdicts, j, last=j == stages - 1) for j in range(stages)]
    return Retention(
        average_accuracy=average_accuracy(accuracy),
        backward_transfer=backward_transfer(accuracy),
        tasks=tuple(TaskRetention(tasks[j], gained[j], lost[j], *changes[j]) for j in range(stages)),
        general_forgetting=None if prior is None else tuple(prior[0] - after for after in prior[1:]),
        prior_since_base=None if prior_verdicts is None else mcnemar(prior_verdicts[0], prior_verdicts[-1]),
    )


def average_accuracy(accuracy: Matrix) -> float:
    """Return the mean accuracy over tasks after the last stage."""
    return float(_matrix(accuracy)[-1].mean())


def acquisition(accuracy: Matrix) -> tuple[float, ...]:
    """Return the [T] accuracies after each task's stage minus those before any training."""
    matrix = _matrix(accuracy)
    return tuple((_learned(matrix) - matrix[0]).tolist())


def backward_transfer(accuracy: Matrix) -> float | None:
    """Return the mean change of all tasks but the last since their stages; None for one stage.

    Negative values are forgetting (Lopez-Paz and Ranzato 2017, arXiv 1706.08840).
    """
    matrix = _matrix(accuracy)
    change = (matrix[-1] - _learned(matrix))[:-1]
    return float(change.mean()) if change.size else None


def forgetting(accuracy: Matrix) -> tuple[float, ...]:
    """Return the forgetting of all tasks but the last, [T - 1].

    It is the best accuracy from the task's stage to the last stage but one, minus the final accuracy. It is
    negative if the last stage improved the task. Source: Chaudhry et al. 2018, arXiv 1801.10112, except that
    stages before the task's own do not count here.
    """
    matrix = _matrix(accuracy)
    return tuple(float(matrix[j + 1 : -1, j].max() - matrix[-1, j]) for j in range(len(matrix) - 2))


def normalize(curves: Mapping[str, Sequence[Sequence[float]]], base: float) -> dict[str, np.ndarray]:
    """Return the accuracies of one task, scaled to 0 for the base and 1 for the best (paper, Figure 3).

    Args:
        curves: method -> [seeds][steps] accuracies; methods may differ in seeds and steps.
        base: accuracy before training.

    Returns:
        method -> [seeds, steps]. The highest mean over seeds of any method at any step is 1, and single seeds
        may exceed it. All values are NaN if no method exceeds the base.
    """
    arrays = {method: np.asarray(rows, np.float64) for method, rows in curves.items()}
    gap = max((float(rows.mean(axis=0).max()) for rows in arrays.values()), default=base) - base
    return {method: (rows - base) / (gap if gap > 0 else np.nan) for method, rows in arrays.items()}


def by_skill(correct: Sequence[bool], skills: Sequence[str | None]) -> dict[str, float]:
    """Return the accuracy of each skill, in order of appearance.

    Args:
        correct: the verdict on each row.
        skills: the skill of each row; None for a row without a skill.

    Raises:
        SdftError: the lists differ in length.
    """
    if len(correct) != len(skills):
        raise SdftError(
            f"there are {len(correct)} verdicts and {len(skills)} skills: give one skill, or None, per row."
        )
    names = dict.fromkeys(skill for skill in skills if skill is not None)
    pairs = list(zip(correct, skills, strict=True))
    groups = {name: [bool(right) for right, skill in pairs if skill == name] for name in names}
    return {name: sum(group) / len(group) for name, group in groups.items()}


def _changes(
    verdicts: Sequence[Sequence[Items]] | None, task: int, last: bool
) -> tuple[McNemar | None, McNemar | None]:
    """Return the changed items of a task: (since the base, since its stage)."""
    if verdicts is None:
        return None, None
    base, learned, end = (verdicts[i][task] for i in (0, task + 1, -1))
    return mcnemar(base, end), None if last else mcnemar(learned, end)


def _learned(matrix: np.ndarray) -> np.ndarray:
    """Return the accuracy on each task after its stage."""
    return np.diagonal(matrix, offset=-1)


def _matrix(accuracy: Matrix) -> np.ndarray:
    """Return the accuracies as [T + 1, T]."""
    for i, row in enumerate(accuracy):
        _check_rows(f"accuracy[{i}]", len(row), len(accuracy) - 1)
    if len(accuracy) < 2:
        raise SdftError(f"accuracy has {len(accuracy)} rows: give one before training and one per stage.")
    return np.asarray(accuracy, np.float64)


def _check_rows(name: str, length: int, expected: int) -> None:
    if length != expected:
        raise SdftError(
            f"{name} has length {length} instead of {expected}: for T stages give T tasks, and T + 1 rows "
            "(before training and after each stage) of T entries."
        )
