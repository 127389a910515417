"""Rows with several demonstrations: the one that an epoch trains on."""

from __future__ import annotations

import dataclasses

import numpy as np

from sdft_jax.data.encoding import Encoded, Shown


def draws(row: Encoded) -> tuple[Encoded, ...]:
    """Return the row once with each of its demonstrations."""
    if not row.others:
        return (row,)
    every = (Shown(row.teacher_prompt, row.target), *row.others)
    return tuple(dataclasses.replace(row, **shown._asdict(), others=()) for shown in every)


def draw(row: Encoded, epoch: int, seed: int) -> Encoded:
    """Return the row with the demonstration of an epoch, counted from 0.

    The order of a row's n demonstrations is random, and depends on the seed and the row alone. Each n epochs
    use each demonstration once: with the order (2, 0, 1), epochs 0 to 4 use demonstrations 2, 0, 1, 2, 0.
    """
    every = draws(row)
    if len(every) == 1:
        return row
    order = np.random.default_rng((seed, row.row)).permutation(len(every))
    return every[order[epoch % len(every)]]
