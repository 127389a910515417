"""Encoded examples -> an endless, checkpointable iterator of padded `TokenBatch`es.

Order and content depend on the seed alone: a restored iterator continues with the batch that the killed
run would have seen, and the hosts' slices of a batch add up to the batch of a single process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int32

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.encoding import LIMITS, Encoded
from sdft_jax.errors import SdftError
from sdft_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Padded lengths that batches may have, ascending; one compilation per combination that occurs."""

    prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    demonstration: tuple[int, ...]


def find_buckets(encoded: Sequence[Encoded], config: DataConfig) -> Buckets:
    """Buckets from the config; where it has none, the longest row, rounded up to a multiple of 8.

    A part that no row has gets width 0. Raises SdftError when a row is longer than every bucket.
    """
    return Buckets(
        _buckets(encoded, "prompt", "data.prompt_buckets", config.prompt_buckets),
        _buckets(encoded, "teacher_prompt", "data.teacher_buckets", config.teacher_buckets),
        _buckets(encoded, "demonstration", "", ()),
    )


def make_batches(
    encoded: Sequence[Encoded],
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    pad_id: int,
    process_index: int = 0,
    process_count: int = 1,
    then: tuple[Sequence[Encoded], int] | None = None,
) -> grain.DatasetIterator[TokenBatch]:
    """Endless batches of `batch_size / process_count` rows: this host's slice of every global batch.

    Every len(encoded) rows in sequence are one reshuffled pass over the data; a batch may straddle two
    passes, so that no row is ever left out. With `config.sorted_batches` above 1, the rows of that many
    batches are dealt out by length, and the batches stand in random order. All hosts get the same width,
    that of the global batch's bucket. With `then`, (other rows, steps), all batches after that many are of
    the other rows, in passes and buckets of their own. Raises SdftError when the hosts do not divide the
    batch.
    """
    if batch_size % process_count:
        raise SdftError(
            f"train.batch_size={batch_size} does not divide among {process_count} processes: "
            f"use a multiple of {process_count}."
        )
    size = batch_size // process_count
    mine = slice(process_index * size, (process_index + 1) * size)

    def endless(encoded: Sequence[Encoded]) -> grain.MapDataset[TokenBatch]:
        buckets = find_buckets(encoded, config)

        def local_batch(rows: Sequence[Encoded]) -> TokenBatch:
            batch = pad_batch(rows, buckets, pad_id)
            columns = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
            return TokenBatch(**{name: column[mine] for name, column in columns.items()})

        # Repeated before it is batched: a dataset smaller than one batch still fills it.
        shuffled = grain.MapDataset.source(encoded).seed(seed % 2**32).shuffle().repeat()
        together = config.sorted_batches
        if together == 1:
            return shuffled.batch(batch_size, batch_fn=local_batch)
        windows = shuffled.batch(batch_size * together, batch_fn=lambda rows: sorted(rows, key=_length))

        def batch_at(index: int) -> TokenBatch:
            window, place = divmod(index, together)
            place = np.random.default_rng((seed, window)).permutation(together)[place]
            return local_batch(windows[window][place * batch_size : (place + 1) * batch_size])

        return grain.MapDataset.range(len(windows)).map(batch_at)

    batches = endless(encoded)
    if then is not None:
        rows, steps = then
        batches = grain.MapDataset.concatenate([batches[:steps], endless(rows)])
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def pad_batch(rows: Sequence[Encoded], buckets: Buckets, pad_id: int, size: int | None = None) -> TokenBatch:
    """Numpy batch: prompts left-padded, demonstrations right-padded, each to the smallest bucket that fits.

    With `size`, the last row fills the batch up to it, at weight 0.
    """
    missing = 0 if size is None else size - len(rows)
    filled = [*rows, *[rows[-1]] * missing]
    prompt, prompt_mask = _pad([e.prompt for e in filled], buckets.prompt, pad_id, left=True)
    teacher, teacher_mask = _pad(
        [e.teacher_prompt for e in filled], buckets.teacher_prompt, pad_id, left=True
    )
    shown, shown_mask = _pad([e.demonstration for e in filled], buckets.demonstration, pad_id, left=False)
    weight = np.repeat(np.asarray([1, 0], np.float32), [len(rows), missing])
    row = np.asarray([e.row for e in filled], np.int32)
    # TokenBatch is declared for arrays on the device; on the host they are numpy arrays.
    columns: tuple[Any, ...] = (prompt, prompt_mask, teacher, teacher_mask, shown, shown_mask, row, weight)
    return TokenBatch(*columns)


def _pad(
    rows: Sequence[Int32[np.ndarray, " T"]], buckets: tuple[int, ...], pad_id: int, left: bool
) -> tuple[Int32[np.ndarray, "B W"], Bool[np.ndarray, "B W"]]:
    longest = max(map(len, rows))
    width = next(bucket for bucket in buckets if bucket >= longest)
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, span], mask[i, span] = row, True
    return tokens, mask


def _length(row: Encoded) -> int:
    return len(row.prompt) + len(row.teacher_prompt) + len(row.demonstration)


def padded_width(length: int) -> int:
    """Columns for tokens that have no bucket of their own: a multiple of 8."""
    return -(-length // 8) * 8


def _buckets(encoded: Sequence[Encoded], part: str, option: str, chosen: tuple[int, ...]) -> tuple[int, ...]:
    longest = max(encoded, key=lambda e: len(getattr(e, part)))
    length = len(getattr(longest, part))
    if not chosen or not length:
        return (padded_width(length),)
    if length > max(chosen):
        raise SdftError(
            f"{option}={tuple(sorted(chosen))}: row {longest.row} has {length} tokens and fits in none: "
            f"add a bucket of {length} or more, or lower {LIMITS[part]}."
        )
    return tuple(sorted(chosen))
