"""Conversion of raw files to rows: the splits of a task, and a reproducible choice of held-out rows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.data.examples import location
from sdft_jax.data.sources import read_rows
from sdft_jax.errors import SdftError
from sdft_jax.tasks.fields import Row
from sdft_jax.tasks.rule import GUIDES, guide_rows
from sdft_jax.tasks.table import TASKS, Task

SPLITS = ("train", "validation", "test")
_RELEASED = {"train": ("train_data", "train"), "validation": ("validation",), "test": ("eval_data", "test")}
"""Split -> the names of its directory or file in a released data set, without suffix."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A raw row that does not become a row."""

    error: str | None = None
    """The reason why it cannot be converted; None if it is not part of the task."""


Maker = Callable[[], Iterator[Row | LeftOut]]
"""A function that yields the rows of a split."""


def task_rows(task: Task, source: str, split: str, skip: bool = False) -> Iterator[Row | LeftOut]:
    """Yield the rows of a source.

    Args:
        task: the task.
        source: a file or data set of raw rows, as `data.path`; for task rule also the name of a guide.
        split: the split of a guide; that of another source is a part of its name.
        skip: True to yield LeftOut for rows that cannot be converted, instead of raising.

    Raises:
        SdftError: a row cannot be converted; the message names the file, the line and the field.
    """
    rows = read_raw(task, source, split)
    for index in range(len(rows)):
        raw = rows[index]
        try:
            row = task.convert(raw, location(source, index))
        except SdftError as error:
            if not skip:
                raise
            yield LeftOut(str(error))
        else:
            yield LeftOut() if row is None else row


def is_guide(task: Task, source: str) -> bool:
    """Return True for the name of a guide, which is a source of task rule only."""
    return task is TASKS["rule"] and source in GUIDES


def read_raw(task: Task, source: str, split: str) -> Sequence[Mapping[str, Any]]:
    """Return the raw rows of a source. Raises SdftError if it cannot be read."""
    if is_guide(task, source):
        return guide_rows(GUIDES[source], split)
    return read_rows(source)


def find_sources(task: Task, words: Sequence[str]) -> dict[str, str]:
    """Return split -> source of the arguments `PATH` and `SPLIT=PATH`.

    The first path without a split is that to train, the second one that to test. A single directory may hold
    both, as the released data sets do (`train_data` and `eval_data`).

    Raises:
        SdftError: a split is given twice, or there are more paths than splits.
    """
    if len(words) == 1 and is_guide(task, words[0]):
        return {"train": words[0], "test": words[0]}
    if len(words) == 1 and (found := sources_below(words[0])):
        return found
    free = iter(("train", "test"))
    sources: dict[str, str] = {}
    for word in words:
        split, separator, path = word.partition("=")
        if not separator or split not in SPLITS:
            split, path = next(free, ""), word
        if not split or split in sources:
            raise SdftError(
                f"{word}: there is already a path to {split or 'train and to test'}: give each split once, "
                "as train=PATH, validation=PATH or test=PATH."
            )
        sources[split] = path
    return sources


def sources_below(directory: str) -> dict[str, str]:
    """Return split -> path of the splits in a directory; {} if it does not have files of both sides.

    Raises:
        SdftError: there are several files or directories of one split.
    """
    entries = sorted(Path(directory).iterdir()) if Path(directory).is_dir() else []
    found = {
        split: [str(entry) for entry in entries if entry.name.split(".")[0] in names]
        for split, names in _RELEASED.items()
    }
    if not (found["train"] and found["test"]):
        return {}
    for split, paths in found.items():
        if len(paths) > 1:
            raise SdftError(f"{paths[0]} and {paths[1]} are both rows to {split}: give one, as {split}=PATH.")
    return {split: paths[0] for split, paths in found.items() if paths}


def split_rows(
    task: Task, sources: Mapping[str, str], hold_out: int = 0, skip: bool = False
) -> dict[str, Maker]:
    """Return split -> a function that yields its rows.

    Args:
        task: the task.
        sources: split -> source.
        hold_out: number of prompts to move from train to test.
        skip: as in `task_rows`.

    Raises:
        SdftError: rows are held out although there are rows to test, or there are too few.
    """
    makers: dict[str, Maker] = {
        split: functools.partial(task_rows, task, source, split, skip) for split, source in sources.items()
    }
    if not hold_out:
        return makers
    if hold_out < 0 or "train" not in sources or "test" in sources:
        raise SdftError(
            f"--hold-out {hold_out} takes rows to test from those to train: give a number above 0, a path to "
            "train, and none to test."
        )
    held = held_out((row for row in makers["train"]() if not isinstance(row, LeftOut)), hold_out)
    sides = {"train": False, "test": True}
    return makers | {
        split: functools.partial(_side, makers["train"], held, test) for split, test in sides.items()
    }


def _side(maker: Maker, held: frozenset[str], test: bool) -> Iterator[Row | LeftOut]:
    """Yield the rows whose prompt is held out (`test`), or all others."""
    for row in maker():
        if (not isinstance(row, LeftOut) and prompt_digest(row) in held) == test:
            yield row


def held_out(rows: Iterator[Row], count: int) -> frozenset[str]:
    """Return the digests of the prompts of `count` held-out questions.

    The choice depends on the prompts alone, and not on their order, so that it is the same for each copy of a
    data set; rows with the same prompt are on the same side.

    Raises:
        SdftError: no prompt would be left to train.
    """
    digests = sorted({prompt_digest(row) for row in rows})
    if count >= len(digests):
        raise SdftError(f"--hold-out {count}: there are {len(digests)} different prompts: hold out fewer.")
    return frozenset(digests[:count])


def prompt_digest(row: Row) -> str:
    """Return the SHA-256 of a row's prompt."""
    return hashlib.sha256(json.dumps(row["prompt"], sort_keys=True).encode()).hexdigest()
