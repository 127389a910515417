"""Training rows of a large source, tokenized when they are trained on instead of before the first step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdft_jax.data.draws import draws
from sdft_jax.data.encoding import Dropped, DroppedRow, Encoded, Lengths
from sdft_jax.data.indexed import Indexed


@dataclasses.dataclass(frozen=True, eq=False)
class LazyRows(Sequence[Encoded]):
    """Rows that are tokenized on access, all of them within the limits.

    In the place of a row over a limit, or with a prompt of an evaluation, is another row. It is drawn at
    random by the index of the place alone, so that a batch depends on nothing but its position in the data:
    batches have their full size, a run that resumes reads the same rows, and so does every process.
    """

    size: int
    """Number of rows in the source."""
    encode: Callable[[int], Encoded]
    """Returns the tokens of the row at an index. Raises DroppedRow if it is over a limit."""
    checked: tuple[Encoded, ...]
    """Rows that were tokenized before the first step; at least one."""
    longest: Lengths
    """The maximum lengths of rows."""
    excluded: frozenset[bytes] = frozenset()
    """The prompts of evaluations, as bytes of their tokens."""
    _dropped: dict[int, tuple[int, str]] = dataclasses.field(default_factory=dict, init=False)
    """The rows without a place, as far as they are known: index -> (row, reason). The index of a turn of a
    trace is not the number of its row."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return Indexed(self.size, self._at)[index]

    @property
    def dropped(self) -> Dropped:
        """The dropped rows among those that were accessed."""
        return Dropped.of(list(self._dropped.values()))  # other threads may add rows

    def read(self, index: int) -> Encoded:
        """Return the row at an index. Raises DroppedRow if it is dropped."""
        row = self.encode(index)
        if row.prompt.tobytes() in self.excluded:
            raise DroppedRow(row.row, "evaluated", len(row.prompt))
        return row

    def _at(self, place: int) -> Encoded:
        generator, index = np.random.default_rng(place), place
        while True:  # it ends: at least the checked rows are not dropped
            if index not in self._dropped:
                try:
                    return self.read(index)
                except DroppedRow as row:
                    self._dropped[index] = row.row, row.part
            index = int(generator.integers(self.size))


def checked(rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """Return the rows that are known before the first step: all, except those of a large source."""
    return rows.checked if isinstance(rows, LazyRows) else rows


def longest(rows: Sequence[Encoded]) -> Lengths:
    """Return the maximum lengths of rows; 0 if there are none."""
    if isinstance(rows, LazyRows):
        return rows.longest
    drawn = (one for row in rows for one in draws(row))
    lengths = [(len(row.prompt), len(row.teacher_prompt), len(row.target)) for row in drawn]
    return Lengths(*map(max, zip(*lengths, strict=True))) if lengths else Lengths(0, 0, 0)


def excluding(rows: Sequence[Encoded], evaluated: Sequence[Encoded]) -> Sequence[Encoded]:
    """Return the rows of a large source without those that have a prompt of an evaluation; others as they
    are.
    """
    if not isinstance(rows, LazyRows):
        return rows
    prompts = frozenset(row.prompt.tobytes() for row in evaluated)
    return dataclasses.replace(rows, excluded=rows.excluded | prompts)


def joined(parts: Sequence[Sequence[Encoded]]) -> Sequence[Encoded]:
    """Return the rows of all parts, numbered consecutively."""
    if not any(isinstance(part, LazyRows) for part in parts):
        return tuple(
            dataclasses.replace(row, row=number) for number, row in enumerate(itertools.chain(*parts))
        )
    starts = np.cumsum([0, *map(len, parts)])

    def encode(index: int) -> Encoded:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        part, own = parts[number], index - int(starts[number])
        try:
            row = part.read(own) if isinstance(part, LazyRows) else part[own]
        except DroppedRow as over:
            raise DroppedRow(index, over.part, over.tokens, over.exact) from None
        return dataclasses.replace(row, row=index)

    lengths = Lengths(*(max(column) for column in zip(*map(longest, parts), strict=True)))
    known = tuple(itertools.chain(*map(checked, parts)))
    return LazyRows(int(starts[-1]), encode, known, lengths)
