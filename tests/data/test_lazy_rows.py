"""Rows that are tokenized on access: those over a limit give their places to others."""

import collections

import numpy as np
import pytest

from sdft_jax.data.encoding import Dropped, DroppedRow, Encoded, Lengths
from sdft_jax.data.lazy_rows import LazyRows, checked, excluding, joined, longest

EMPTY = np.zeros(0, np.int32)


def encoded(row):
    return Encoded(np.asarray([row], np.int32), EMPTY, EMPTY, row)


def rows_of(size=200, long=()):
    """Return lazy rows of which some are over the limit of prompts, and the indices that are tokenized."""
    read = []

    def encode(index):
        read.append(index)
        if index in long:
            raise DroppedRow(index, "prompt", 9)
        return encoded(index)

    known = tuple(encoded(index) for index in range(size) if index not in long)[:2]
    return LazyRows(size, encode, known, Lengths(4, 0, 0)), read


def test_rows_are_tokenized_on_access():
    rows, read = rows_of()
    assert (len(rows), read) == (200, [])
    assert [row.row for row in (rows[7], rows[-1], *rows[3:5])] == [7, 199, 3, 4]
    assert read == [7, 199, 3, 4]
    with pytest.raises(IndexError):
        rows[200]


def test_row_over_a_limit_gives_its_place_to_another_one():
    long = range(0, 200, 2)
    rows, _ = rows_of(long=long)
    taken = [row.row for row in rows]
    assert taken[1::2] == list(range(1, 200, 2))
    assert not set(taken) & set(long)
    assert max(collections.Counter(taken[::2]).values()) < 10  # not always the same one
    assert rows.dropped == Dropped(prompt=tuple(long))
    again, _ = rows_of(long=long)
    assert [again[index].row for index in reversed(range(200))][::-1] == taken


def test_dropped_row_is_tokenized_once():
    rows, read = rows_of(8, long=range(1, 8))
    for _ in range(3):
        assert {row.row for row in rows} == {0}
    assert all(count == 1 for index, count in collections.Counter(read).items() if index)


def test_prompts_of_evaluations_are_dropped():
    rows, _ = rows_of(long=[5])
    kept = excluding(excluding(rows, [encoded(3)]), [encoded(8), encoded(999)])
    assert not {row.row for row in kept} & {3, 5, 8}
    assert kept.dropped == Dropped(prompt=(5,), evaluated=(3, 8))
    assert str(kept.dropped).endswith("; 2 with a prompt of an evaluation (rows 3, 8)")
    assert rows.dropped.total == 0
    assert rows[3].row == 3
    known = (encoded(3),)
    assert excluding(known, [encoded(3)]) is known


def test_known_rows_and_lengths():
    rows, _ = rows_of()
    assert [row.row for row in checked(rows)] == [0, 1]
    assert longest(rows) == (4, 0, 0)
    known = [encoded(0), Encoded(np.zeros(2, np.int32), np.zeros(7, np.int32), EMPTY, 1)]
    assert checked(known) is known
    assert longest(known) == (2, 7, 0)
    assert longest([]) == (0, 0, 0)


def test_joined_parts_are_numbered_consecutively():
    few = (encoded(0), encoded(1))
    assert [(row.row, row.prompt[0]) for row in joined([few, few])] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    lazy, read = rows_of(4, long=[2])
    rows = joined([few, excluding(lazy, [encoded(3)]), few])
    assert (len(rows), len(checked(rows)), longest(rows), read) == (8, 6, (4, 0, 0), [])
    assert [(rows[index].row, rows[index].prompt[0]) for index in (0, 2, 3, 6, 7)] == [
        (0, 0),
        (2, 0),
        (3, 1),
        (6, 0),
        (7, 1),
    ]
    assert rows[4].row not in (4, 5)
    assert rows[5].row not in (4, 5)
    assert rows.dropped == Dropped(prompt=(4,), evaluated=(5,))
