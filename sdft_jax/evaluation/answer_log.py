"""The directory of an evaluation: its answers and verdicts, appended as they are made, and what they answer.

`answers.jsonl` is a log while an evaluation runs: a line has an answer or, later, its verdict. At the end it
has one line per answer, in the order of roles, rows and samples. A kill loses the lines of one batch at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.completions import SAMPLED, STUDENT, TEACHER, Completion, Role
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.files import json_line, open_replacement, read_json, read_json_lines, write_errors, write_text
from sdft_jax.files.hashing import short_digest

ANSWERS, INPUTS, SUMMARY = "answers.jsonl", "evaluation.json", "summary.json"

Key = tuple[str, int, int | None, int]
"""The role, the row in its source, the turn if the row is a trace, and the sample of an answer."""
Record = Mapping[str, Any]
"""An answer as JSON: role, row, turn and sample, and the fields of `AnswerLog.records`."""

_ROLES = (STUDENT, TEACHER, SAMPLED)
_REMEDY = "fix this and run the same command again, which continues after the last answer"


@dataclasses.dataclass(frozen=True)
class AnswerLog:
    """The answers of an evaluation."""

    records: Mapping[Key, Record]
    """The answers so far, with the fields

    role, row, turn, sample: the key;
    input: digest of the texts that the model read; prompt: the student's prompt; prompt_tokens: its length;
    completion, tokens, truncated, nats: the answer, as in `Completion`;
    skill: that of the row, or None;
    answer, scorer, correct, partly, decided_by, fault: the verdict, the reference and the scorer that gave
    it; `partly` and `decided_by` are None for a scorer without them, and a fault is the reason of a scorer
    that failed.
    """
    add: Callable[[Iterable[Record]], None]
    """Merge fields into the answers of the same key, and write them."""


def as_record(role: Role, completion: Completion, rows: EvalSet) -> Record:
    """Return an answer as JSON, without a verdict."""
    example, encoded = rows.examples[completion.index], rows.encoded[completion.index]
    return {
        "role": role.name,
        "row": example.row,
        "turn": example.turn,
        "sample": completion.sample,
        "input": input_digest(role, example),
        "prompt": plain(example.prompt),
        "prompt_tokens": len(encoded.prompt),
        "skill": example.skill,
        "completion": completion.text,
        "tokens": completion.length,
        "truncated": completion.truncated,
        "nats": completion.nats,
    }


def input_digest(role: Role, example: Example) -> str:
    """Return a digest of the texts of a row that a role reads.

    The texts count, not their tokens: some chat templates add the date.
    """
    context = example.demonstration if example.context is None else example.context
    texts = json.dumps(plain([example.prompt, context if role.teacher else None, *example.tools]))
    return short_digest(texts)


def plain(value: Any) -> Any:
    """Return a value as it reads back from JSON; a value that JSON does not have becomes a text."""
    return json.loads(json.dumps(value, default=str))


def key_of(record: Record) -> Key:
    """Return the key of an answer."""
    return record["role"], record["row"], record["turn"], record["sample"]


def name_of(record: Record) -> str:
    """Return the row and the turn of an answer, for people."""
    turn = "" if record["turn"] is None else f", message {record['turn']}"
    return f"row {record['row']}{turn}"


def in_order(records: Iterable[Record]) -> list[Record]:
    """Return answers in the order of roles, rows, turns and samples."""

    def place(record: Record) -> tuple[int, int, int, int]:
        role, row, turn, sample = key_of(record)
        return _ROLES.index(role), row, -1 if turn is None else turn, sample

    return sorted(records, key=place)


def new_log(
    write: Callable[[list[Record]], None] = lambda records: None, stored: Iterable[Record] = ()
) -> AnswerLog:
    """Return a log with the stored answers; `write` receives what is added."""
    records: dict[Key, Record] = {key_of(record): record for record in stored}

    def add(changes: Iterable[Record]) -> None:
        changes = list(changes)
        for change in changes:
            records[key_of(change)] = {**records.get(key_of(change), {}), **change}
        write(changes)

    return AnswerLog(records, add)


@contextlib.contextmanager
def open_log(directory: Path, warn: Callable[[str], None]) -> Iterator[AnswerLog]:
    """Open the answers in a directory, to add to them; the directory has been claimed.

    Args:
        directory: the directory.
        warn: prints the number of damaged lines, whose answers are made again.
    """
    path = directory / ANSWERS
    stored, damaged = _read(path)
    if damaged:
        warn(f"{path}: {damaged} damaged lines were dropped; their answers are made again.")
    with write_errors(path, _REMEDY), open_replacement(path) as file:
        file.writelines(json_line(record) for record in in_order(stored))

    def write(records: list[Record]) -> None:
        with write_errors(path, _REMEDY):
            file.writelines(map(json_line, records))
            file.flush()

    log = new_log(write, stored)
    with file:
        yield log
    with write_errors(path, _REMEDY):
        write_text(path, "".join(json_line(record) for record in in_order(log.records.values())))


def claim(directory: Path, inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Make a directory that of an evaluation, or verify that it is.

    Args:
        directory: the directory, which may exist.
        inputs: `settings` and `digests` of all that determines the answers. One that the stored evaluation
            does not have is added, such as the teacher's template when the teacher is added.

    Raises:
        SdftError: the directory has answers of another model or with other settings, or foreign files.
    """
    path = directory / INPUTS
    if directory.is_dir() and not path.exists():
        foreign = sorted(file.name for file in directory.iterdir() if not file.name.startswith("."))
        if foreign:
            raise SdftError(
                f"{directory} holds files that do not belong to an evaluation, such as {foreign[0]}: give "
                "another --out."
            )
    stored = read_json(path, f"restore it, or delete {directory}") if path.exists() else {}
    merged = {}
    for part, values in json.loads(json.dumps(inputs)).items():
        before = stored.get(part)
        before = before if isinstance(before, dict) else {}
        for name, value in values.items():
            if before.get(name, value) != value:
                shown = f" ({before[name]!r} before, {value!r} now)" if part == "settings" else ""
                raise SdftError(
                    f"{directory} has answers of another evaluation, since {name} changed{shown}: give "
                    f"another --out, or delete {directory}."
                )
        merged[part] = before | values
    with write_errors(path, "fix this, or give another --out"):
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(merged, indent=1, ensure_ascii=False) + "\n")


def refuse_other_rows(log: AnswerLog, directory: Path, rows: EvalSet, roles: Sequence[Role]) -> None:
    """Raise SdftError if the log has an answer to a row that is not among the rows, or has changed."""
    examples, named = {x.id: x for x in rows.examples}, {role.name: role for role in roles}
    for record in log.records.values():
        example, role = examples.get((record["row"], record["turn"])), named.get(record["role"])
        if example is None:
            problem = f"has an answer to {name_of(record)}, which is not among the rows of this evaluation"
        elif role is not None and record["input"] != input_digest(role, example):
            problem = f"has the {role.name}'s answer to another text of this row"
        else:
            continue
        place = rows.examples[0].source if example is None else example.location
        raise SdftError(f"{place}: {directory} {problem}: restore the rows, or give another --out.")


def read_answers(path: Path) -> list[Record]:
    """Return the answers of an evaluation, in order; `path` is its directory or its answers.jsonl.

    Raises:
        SdftError: there is no such file, or a line is damaged.
    """
    file = path / ANSWERS if path.is_dir() else path
    remedy = f"give the directory of `sdft evaluate --out`, or its {ANSWERS}"
    if not file.exists():
        raise SdftError(f"{file} does not exist: {remedy}.")
    records, damaged = _read(file)
    if damaged or not records:
        problem = f"{damaged} lines that are not answers" if damaged else "no answers"
        raise SdftError(f"{file} has {problem}: {remedy}.")
    return in_order(records)


def _read(path: Path) -> tuple[list[Record], int]:
    """Return (answers, number of lines that are neither an answer nor the verdict on one)."""
    if not path.exists():
        return [], 0
    lines, damaged = read_json_lines(path)
    records: dict[Key, Record] = {}
    for line in lines:
        if not _has_key(line):
            damaged += 1
        else:
            records[key_of(line)] = {**records.get(key_of(line), {}), **line}
    whole = [record for record in records.values() if _is_answer(record)]
    return whole, damaged + len(records) - len(whole)


def _has_key(line: Record) -> bool:
    return (
        isinstance(line.get("role"), str)
        and line["role"] in _ROLES
        and all(_is_count(line.get(name)) for name in ("row", "sample"))
        and (line.get("turn", 0) is None or _is_count(line.get("turn")))
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_answer(record: Record) -> bool:
    """Return True if a record has the fields of an answer; the verdict may be missing."""
    return (
        all(isinstance(record.get(name), str) for name in ("input", "completion"))
        and _is_prompt(record.get("prompt"))
        and all(_is_count(record.get(name)) for name in ("prompt_tokens", "tokens"))
        and isinstance(record.get("truncated"), bool)
        and isinstance(record.get("nats"), float | None)
        and all(isinstance(record.get(name), str | None) for name in ("skill", "decided_by", "fault"))
        and all(isinstance(record.get(name), bool | None) for name in ("correct", "partly"))
    )


def _is_prompt(value: Any) -> bool:
    """Return True for a text or a list of chat turns."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(x, dict) for x in value))
