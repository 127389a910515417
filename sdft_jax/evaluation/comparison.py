"""The paired comparison of two evaluations of the same rows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.evaluation.answer_log import Record, name_of, read_answers
from sdft_jax.evaluation.completions import SAMPLED, STUDENT
from sdft_jax.evaluation.summary import as_text
from sdft_jax.reporting.statistics import McNemar, mcnemar, paired_difference, wilson

_FIELDS = {"prompt": "prompt", "answer": "reference answer", "scorer": "scorer"}
"""Field of an answer that must be equal in both evaluations -> its name in messages. What a student reads
beside the prompt are the tools of a trace; teachers may be compared with different contexts."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The answers of two evaluations to the same rows, in order of the rows."""

    names: tuple[str, str]
    """The directories or files of the evaluations."""
    pairs: tuple[tuple[Record, Record], ...]

    def correct(self, side: int) -> list[bool]:
        """Return the verdicts of the first (0) or the second (1) evaluation."""
        return [pair[side]["correct"] for pair in self.pairs]

    @property
    def difference(self) -> tuple[float, float, float]:
        """The accuracy of the second minus that of the first, with its 95 % interval (Newcombe's)."""
        return paired_difference(self.correct(0), self.correct(1))

    @property
    def changes(self) -> McNemar:
        """The rows whose verdict changed, and McNemar's exact test."""
        return mcnemar(self.correct(0), self.correct(1))

    def changed(self) -> dict[str, list[tuple[Record, Record]]]:
        """Return the pairs whose answers differ: lost, gained, and those with the same verdict."""
        groups: dict[str, list[tuple[Record, Record]]] = {"lost": [], "gained": [], "same verdict": []}
        for before, after in self.pairs:
            if before["correct"] != after["correct"]:
                groups["gained" if after["correct"] else "lost"].append((before, after))
            elif before["completion"] != after["completion"]:
                groups["same verdict"].append((before, after))
        return groups


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str], role: str) -> Comparison:
    """Return the paired answers of a role in two evaluations.

    Args:
        first, second: directories of evaluations, or their answers.jsonl.
        role: `student` or `teacher`.

    Raises:
        SdftError: an evaluation is damaged or not scored, the rows of the two differ (the message names the
            first row), or they were scored by different tasks.
    """
    names = os.fspath(first), os.fspath(second)
    a, b = (_answers(Path(name), role) for name in names)
    for place in sorted(a.keys() | b.keys()):
        row = name_of(a.get(place) or b[place])
        if place not in a or place not in b:
            without, having = names if place not in a else names[::-1]
            raise SdftError(
                f"{without} has no answer to {row}, and {having} has one: evaluate both on the same rows."
            )
        for field, text in (*_FIELDS.items(), *([("input", "set of tools")] if role == STUDENT else [])):
            values = [records[place].get(field) for records in (a, b)]
            if values[0] != values[1]:
                shown = " ({!r} and {!r})".format(*values) if field == "scorer" else ""
                raise SdftError(
                    f"{row} has another {text} in {names[0]} than in {names[1]}{shown}: evaluate both on "
                    "the same rows, with the same task."
                )
    return Comparison(names, tuple((a[place], b[place]) for place in sorted(a)))


def _answers(path: Path, role: str) -> dict[tuple[int, int], Record]:
    """Return the scored answers of a greedy role by row and turn; the turn is -1 if the row is no trace."""
    if role == SAMPLED:
        raise SdftError(f"role {SAMPLED} has several answers to a row: compare student or teacher.")
    records = [record for record in read_answers(path) if record["role"] == role]
    if not records:
        raise SdftError(f"{path} has no answers of the {role}: evaluate the {role}, or give another --role.")
    for record in records:
        if record.get("correct") is None:
            raise SdftError(
                f"{path}: the {role}'s answer to {name_of(record)} has no verdict: run the same "
                "`sdft evaluate` again, which continues."
            )
    return {(x["row"], -1 if x["turn"] is None else x["turn"]): x for x in records}


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of the printed table: both evaluations, and their difference."""
    n = len(comparison.pairs)
    rows: list[dict[str, Any]] = []
    for side, name in enumerate(comparison.names):
        answers = [pair[side] for pair in comparison.pairs]
        correct = sum(comparison.correct(side))
        faults = sum(x.get("fault") is not None for x in answers)
        rows.append(
            {
                "evaluation": f"{'AB'[side]} {name}",
                "accuracy": f"{correct / n:.3f}",
                "95 % interval": as_text(wilson(correct, n)),
                "correct": f"{correct}/{n}",
                "mean tokens": f"{sum(x['tokens'] for x in answers) / n:.1f}",
            }
            | ({"scorer faults": faults} if faults else {})
        )
    difference, low, high = comparison.difference
    interval = f"{low:+.3f} to {high:+.3f}"
    return [*rows, {"evaluation": "B - A", "accuracy": f"{difference:+.3f}", "95 % interval": interval}]


def comparison_sentence(comparison: Comparison) -> str:
    """Return the changes of verdicts and their test, in one sentence."""
    changes = comparison.changes
    return (
        f"of {len(comparison.pairs)} rows, B is right in {changes.gained} that A has wrong (gained), and "
        f"wrong in {changes.forgotten} that A has right (lost); McNemar's exact test: p = {changes.p:.2g}"
    )


def as_json(comparison: Comparison, role: str) -> dict[str, Any]:
    """Return the numbers of a comparison as JSON, with the rows that changed."""
    difference, low, high = comparison.difference
    changes, n = comparison.changes, len(comparison.pairs)
    groups = comparison.changed()
    return {
        "evaluations": [
            {"path": name, "correct": correct, "accuracy": correct / n, "interval": wilson(correct, n)}
            for name, correct in zip(
                comparison.names, (sum(comparison.correct(side)) for side in (0, 1)), strict=True
            )
        ],
        "role": role,
        "rows": n,
        "difference": {"value": difference, "interval": [low, high]},
        "mcnemar": {"gained": changes.gained, "lost": changes.forgotten, "p": changes.p},
        "changed_rows": {
            name: [{"row": before["row"], "turn": before["turn"]} for before, _ in pairs]
            for name, pairs in groups.items()
        },
    }
