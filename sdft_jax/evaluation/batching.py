"""Batches of token sequences of very different lengths, in few shapes: each shape is compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sdft_jax.data.batches import pad_rows
from sdft_jax.types import Sequences

FULL_WIDTH = 512
"""Maximum width of a batch with all its rows, in tokens; a wider one has fewer rows, and so about as many
tokens."""
_WIDTHS = tuple(sorted([1 << bits for bits in range(5, 25)] + [3 << bits for bits in range(4, 24)]))
"""The widths of batches, in tokens: 32, 48, 64, 96, ..., so that at most a third of a row is padding."""


class Batch(NamedTuple):
    """The rows that one call of a program reads."""

    members: tuple[int, ...]
    """Indices of the sequences."""
    width: int
    """The padded length of the rows, in tokens."""
    rows: int
    """The number of rows, with those that only fill the batch."""


def plan_batches(sizes: Sequence[tuple[int, ...]], batch_size: int, parts: int) -> list[Batch]:
    """Return batches of all sequences, the widest first: if memory does not suffice, the first one fails.

    Args:
        sizes: the length of each sequence in tokens, and other sizes by which sequences of one width are
            ordered.
        batch_size: the number of rows of batches that are at most `FULL_WIDTH` wide.
        parts: a number that divides the number of rows: that of the mesh.
    """

    def order(index: int) -> tuple[int, ...]:
        length, *others = sizes[index]
        return (width_of(length), *others)

    rest = sorted(range(len(sizes)), key=order, reverse=True)
    batches = []
    while rest:
        width = width_of(sizes[rest[0]][0])
        most = _multiple(max(1, batch_size * FULL_WIDTH // max(width, FULL_WIDTH)), parts)
        rows = min(most, _multiple(1 << (len(rest) - 1).bit_length(), parts))
        batches.append(Batch(tuple(rest[:rows]), width, rows))
        rest = rest[rows:]
    return batches


def width_of(length: int) -> int:
    """Return the padded length of a sequence, in tokens."""
    return next(width for width in _WIDTHS if width >= length)


def pad(rows: Sequence[Sequence[int]], batch: Batch, pad_id: int, *, left: bool) -> Sequences:
    """Return rows as padded arrays on the host; copies of the last one fill the batch."""
    filled = [*rows, *[rows[-1]] * (batch.rows - len(rows))]
    return pad_rows(filled, batch.width, pad_id, left=left)


def _multiple(number: int, parts: int) -> int:
    return -(-number // parts) * parts
