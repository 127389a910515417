"""The numbers of an evaluation: accuracies with intervals, pass@k, lengths, and the distance from a base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdft_jax.evaluation.answer_log import Record
from sdft_jax.evaluation.completions import SAMPLED, STUDENT, TEACHER
from sdft_jax.reporting.statistics import bootstrap_interval, mcnemar, mean_pass_at_k, pass_at_k, wilson

LENGTHS = {"prompt tokens": "prompt_tokens", "answer tokens": "tokens"}
"""Title of a table of buckets -> the field of an answer with the length."""


def summarize(records: Iterable[Record]) -> dict[str, Any]:
    """Return the numbers of an evaluation as JSON, from its scored answers.

    `roles` has the greedy answers of student and teacher and the sampled ones, `skills` the same by the field
    `skill` of the rows, `pass_at_k` those of the samples, `buckets` the verdicts by length, and
    `demonstration` the paired comparison of the teacher with the student.
    """
    roles: dict[str, list[Record]] = {}
    for record in records:
        roles.setdefault(record["role"], []).append(record)
    summary: dict[str, Any] = {
        "roles": {name: summarize_role(answers) for name, answers in roles.items()},
        "skills": {name: summarize_skills(answers) for name, answers in roles.items()},
        "buckets": {title: buckets(roles, field) for title, field in LENGTHS.items()},
    }
    if SAMPLED in roles:
        summary["pass_at_k"] = summarize_samples(roles[SAMPLED])
    if {STUDENT, TEACHER} <= roles.keys():
        changes = mcnemar(*([bool(x["correct"]) for x in roles[name]] for name in (STUDENT, TEACHER)))
        summary["demonstration"] = {"gained": changes.gained, "lost": changes.forgotten, "p": changes.p}
    return summary


def summarize_skills(answers: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return the numbers of the answers of one role for each skill, in order of appearance."""
    skills: dict[str, list[Record]] = {}
    for answer in answers:
        if answer.get("skill") is not None:
            skills.setdefault(answer["skill"], []).append(answer)
    return {skill: summarize_role(some) for skill, some in skills.items()}


def summarize_role(answers: Sequence[Record]) -> dict[str, Any]:
    """Return accuracy, lengths and distance of the answers of one role.

    The interval of the accuracy is Wilson's, for one answer per row; several samples of a row are not
    independent, and `pass_at_k` has their interval.
    """
    correct, lengths = sum(bool(x["correct"]) for x in answers), [x["tokens"] for x in answers]
    single = all(x["sample"] == 0 for x in answers)
    nats = [x["nats"] for x in answers]
    partly = [x.get("partly") for x in answers]
    median, ninetieth = np.quantile(lengths, (0.5, 0.9))
    return {
        "answers": len(answers),
        "correct": correct,
        "accuracy": correct / len(answers),
        "interval": wilson(correct, len(answers)) if single else None,
        "lenient": None if None in partly else (correct + sum(map(bool, partly))) / len(answers),
        "faults": sum(x.get("fault") is not None for x in answers),
        "tokens": {
            "mean": sum(lengths) / len(lengths),
            "median": float(median),
            "p90": float(ninetieth),
            "max": max(lengths),
        },
        "truncated": sum(x["truncated"] for x in answers) / len(answers),
        "kl_to_base": None if None in nats else sum(nats) / sum(lengths),
    }


def summarize_samples(answers: Sequence[Record]) -> list[dict[str, Any]]:
    """Return pass@k for k = 1, 2, 4, ... up to the number of samples, which is the same for all rows.

    The intervals are a bootstrap over rows, since the samples of a row depend on each other.
    """
    verdicts: dict[tuple[int, int | None], list[bool]] = {}
    for answer in answers:
        verdicts.setdefault((answer["row"], answer["turn"]), []).append(bool(answer["correct"]))
    rows = list(verdicts.values())
    n = min(map(len, rows))
    ks = [1 << bits for bits in range(n.bit_length())]
    return [
        {
            "k": k,
            "pass_at_k": mean_pass_at_k(rows, k),
            "interval": bootstrap_interval([pass_at_k(len(row), sum(row), k) for row in rows]),
        }
        for k in ks
    ]


def buckets(roles: Mapping[str, Sequence[Record]], field: str) -> list[dict[str, Any]]:
    """Return the number of answers and of correct ones by length, in buckets that end at powers of two.

    For example, the bucket from 33 to 64 is {"from": 33, "to": 64, "student": {"answers": 7, "correct": 3}}.
    """
    counts: dict[int, dict[str, dict[str, int]]] = {}
    for name, answers in roles.items():
        for answer in answers:
            upper = 1 << max(answer[field] - 1, 0).bit_length()
            count = counts.setdefault(upper, {}).setdefault(name, {"answers": 0, "correct": 0})
            count["answers"] += 1
            count["correct"] += bool(answer["correct"])
    return [{"from": upper // 2 + 1, "to": upper, **counts[upper]} for upper in sorted(counts)]


def role_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the printed table of a summary: one per role, and one per skill of its rows."""
    roles = {}
    for name, role in summary["roles"].items():
        roles[name] = role
        roles |= {f"{name}, {skill}": part for skill, part in summary["skills"][name].items()}
    optional = {
        "lenient": lambda role: role["lenient"],
        "KL to base": lambda role: role["kl_to_base"],
        "scorer faults": lambda role: role["faults"] or None,
    }
    shown = {name for name, get in optional.items() if any(get(role) is not None for role in roles.values())}
    return [
        {
            "role": name,
            "accuracy": role["accuracy"],
            "95 % interval": as_text(role["interval"]),
            "correct": f"{role['correct']}/{role['answers']}",
            "mean tokens": role["tokens"]["mean"],
            "median": f"{role['tokens']['median']:.0f}",
            "90 %": f"{role['tokens']['p90']:.0f}",
            "truncated": f"{role['truncated']:.1%}",
        }
        | {title: get(role) for title, get in optional.items() if title in shown}
        for name, role in roles.items()
    ]


def sample_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the printed table of pass@k."""
    return [
        {"k": row["k"], "pass@k": row["pass_at_k"], "95 % interval": as_text(row["interval"])}
        for row in summary.get("pass_at_k", ())
    ]


def decision_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the rows of a printed table of what decided verdicts; [] if the scorer does not report it."""
    reasons = [x.get("decided_by") for x in records]
    if None in reasons:
        return []
    right = Counter(reason for reason, x in zip(reasons, records, strict=True) if x["correct"])
    return [
        {"decided by": reason, "answers": count, "correct": right[reason]}
        for reason, count in Counter(reasons).most_common()
    ]


def bucket_rows(summary: Mapping[str, Any], title: str) -> list[dict[str, Any]]:
    """Return the rows of a printed table of buckets: accuracy and counts of each role."""
    return [
        {title: f"{bucket['from']} to {bucket['to']}" if bucket["from"] < bucket["to"] else bucket["to"]}
        | {
            role: f"{count['correct'] / count['answers']:.3f} ({count['correct']}/{count['answers']})"
            for role, count in bucket.items()
            if role in summary["roles"]
        }
        for bucket in summary["buckets"][title]
    ]


def as_text(interval: tuple[float, float] | None) -> str | None:
    """Return an interval as text; None for None."""
    return None if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
