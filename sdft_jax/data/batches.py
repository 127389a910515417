"""Padded `TokenBatch`es from encoded examples, as an infinite iterator whose state can be checkpointed.

Order and content depend only on the seed: an iterator that is restored from a checkpoint continues with the
batch that the preempted run would have read next, and the slices of all hosts concatenate to the batch of a
single process.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from sdft_jax.config import Config
from sdft_jax.config.settings import DataConfig
from sdft_jax.data.draws import draw, draws
from sdft_jax.data.encoding import LIMITS, Encoded
from sdft_jax.data.lazy_rows import checked, longest
from sdft_jax.errors import SdftError
from sdft_jax.types import Sequences, TokenBatch


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The padded lengths of batches, in tokens, ascending; each combination that occurs is compiled once."""

    prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    target: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class HostSlice:
    """The slice of a process; each process loads an equal slice of every global batch."""

    index: int = 0
    """Index of this process, from 0."""
    count: int = 1
    """The number of processes."""


_ROWS = 1 << 50
"""The number of rows after which an iterator would end, far more than any run reads."""


def find_buckets(encoded: Sequence[Encoded], config: DataConfig) -> Buckets:
    """Return the configured buckets or, if there are none, the length of the longest row as the only bucket.

    That length is rounded up to a multiple of 8. For a large source, whose longest row is not known, there
    are two buckets: the length of the longest row that is known, and the limit.

    A part that is empty in every row has width 0.

    Raises:
        SdftError: a row is longer than the largest bucket; for a large source, the limit is.
    """
    return Buckets(
        _buckets(encoded, "prompt", "data.prompt_buckets", config.prompt_buckets),
        _buckets(encoded, "teacher_prompt", "data.teacher_buckets", config.teacher_buckets),
        _buckets(encoded, "target", "", ()),
    )


def make_batches(
    encoded: Sequence[Encoded],
    config: Config,
    pad_id: int,
    *,
    host: HostSlice = HostSlice(),
    then: tuple[Sequence[Encoded], int] | None = None,
) -> Iterator[TokenBatch]:
    """Return an endless `grain.DatasetIterator` of this host's batches.

    A batch has `train.batch_size / host.count` rows.

    Each consecutive len(encoded) rows are one shuffled pass over the data, for which one demonstration of
    each row is drawn. A batch may span two passes, so no row is dropped. If `data.sorted_batches` is above 1,
    the rows of that many batches are sorted by length before they are split into batches, and these batches
    are shuffled. All hosts pad to the same width, the bucket of the global batch. A host reads only its own
    rows if there is one bucket and no sorting.

    Args:
        encoded: the rows.
        config: batch size and seed are those of `config.train`.
        pad_id: the padding token.
        host: this process among all.
        then: (rows, steps): after that many batches, all batches consist of these other rows, with their own
            passes and buckets.

    Raises:
        SdftError: the batch size is not divisible by the number of processes, or a row is longer than the
            largest bucket.
    """
    if not encoded:
        raise SdftError("there are no rows: give at least one.")
    if config.train.batch_size % host.count:
        raise SdftError(
            f"train.batch_size={config.train.batch_size} is not divisible by the number of processes, "
            f"{host.count}: use a multiple of {host.count}."
        )
    batches = _repeated_batches(encoded, config, pad_id, host)
    if then is not None:
        rows, steps = then
        batches = grain.MapDataset.concatenate(
            [batches[:steps], _repeated_batches(rows, config, pad_id, host)]
        )
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def _repeated_batches(
    encoded: Sequence[Encoded], config: Config, pad_id: int, host: HostSlice
) -> grain.MapDataset[TokenBatch]:
    batch_size, seed, sorted_batches = config.train.batch_size, config.train.seed, config.data.sorted_batches
    buckets = find_buckets(encoded, config.data)
    local_size = batch_size // host.count
    own = slice(host.index * local_size, (host.index + 1) * local_size)

    def local_batch(rows: Sequence[Encoded]) -> TokenBatch:
        return _slice_batch(pad_batch(rows, buckets, pad_id), own)

    def rows_at(drawn: Sequence[tuple[int, int]]) -> list[Encoded]:
        return [draw(encoded[int(index)], epoch, seed) for index, epoch in drawn]

    def batch_of(drawn: Sequence[tuple[int, int]]) -> TokenBatch:
        if all(len(widths) == 1 for widths in dataclasses.astuple(buckets)):
            return pad_batch(rows_at(drawn[own]), buckets, pad_id)
        return local_batch(rows_at(drawn))

    # Repeat before batching, so that a dataset smaller than one batch still fills it. Not without end: grain
    # computes the number of batches in floating point, and for batches of 1 row it would exceed the integers.
    passes = max(1, _ROWS // len(encoded))
    shuffled = grain.MapDataset.range(len(encoded)).seed(seed).shuffle().repeat(passes)
    shuffled = shuffled.map_with_index(lambda place, index: (index, place // len(encoded)))
    if sorted_batches == 1:
        return shuffled.batch(batch_size, batch_fn=batch_of)
    windows = shuffled.batch(batch_size * sorted_batches, batch_fn=list)

    @functools.lru_cache(maxsize=1)  # the rows of a window are tokenized once, not for each of its batches
    def window_at(window: int) -> list[Encoded]:
        return sorted(rows_at(windows[window]), key=_length)

    def batch_at(index: int) -> TokenBatch:
        window, position = divmod(index, sorted_batches)
        first = np.random.default_rng((seed, window)).permutation(sorted_batches)[position] * batch_size
        return local_batch(window_at(window)[first : first + batch_size])

    return grain.MapDataset.range(len(windows)).map(batch_at)


def pad_batch(rows: Sequence[Encoded], buckets: Buckets, pad_id: int, size: int | None = None) -> TokenBatch:
    """Return a batch of NumPy arrays, each part padded to the smallest bucket that holds its longest row.

    Prompts are left-padded, targets are right-padded. With `size`, the batch is filled up to that many rows
    with copies of the last row at weight 0.
    """
    missing = 0 if size is None else size - len(rows)
    filled = [*rows, *[rows[-1]] * missing]
    # TokenBatch is declared for device arrays; on the host they are NumPy arrays.
    row: Any = np.asarray([e.row for e in filled], np.int32)
    weight: Any = np.repeat(np.asarray([1, 0], np.float32), [len(rows), missing])
    return TokenBatch(
        prompt=_pad([e.prompt for e in filled], buckets.prompt, pad_id, left=True),
        teacher_prompt=_pad([e.teacher_prompt for e in filled], buckets.teacher_prompt, pad_id, left=True),
        target=_pad([e.target for e in filled], buckets.target, pad_id, left=False),
        row=row,
        weight=weight,
    )


def _pad(
    rows: Sequence[Int32[np.ndarray, " T"]], buckets: tuple[int, ...], pad_id: int, left: bool
) -> Sequences:
    longest = max(map(len, rows))
    return pad_rows(rows, next(bucket for bucket in buckets if bucket >= longest), pad_id, left=left)


def pad_rows(rows: Sequence[Sequence[int] | np.ndarray], width: int, pad_id: int, *, left: bool) -> Sequences:
    """Return rows of tokens as NumPy arrays, padded to a width on the left or on the right."""
    tokens: Any = np.full((len(rows), width), pad_id, np.int32)
    mask: Any = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, span], mask[i, span] = row, True
    return Sequences(tokens, mask)


def _slice_batch(batch: TokenBatch, rows: slice) -> TokenBatch:
    def part(sequences: Sequences) -> Sequences:
        return Sequences(sequences.tokens[rows], sequences.mask[rows])

    return TokenBatch(
        prompt=part(batch.prompt),
        teacher_prompt=part(batch.teacher_prompt),
        target=part(batch.target),
        row=batch.row[rows],
        weight=batch.weight[rows],
    )


def _length(row: Encoded) -> int:
    return len(row.prompt) + len(row.teacher_prompt) + len(row.target)


def padded_width(length: int) -> int:
    """Return the width of tokens without a configured bucket: the next multiple of 8."""
    return -(-length // 8) * 8


def _buckets(
    encoded: Sequence[Encoded], part: str, option: str, configured: tuple[int, ...]
) -> tuple[int, ...]:
    every = (one for row in checked(encoded) for one in draws(row))
    known = max(every, key=lambda e: len(getattr(e, part)))
    length, limit = len(getattr(known, part)), getattr(longest(encoded), part)
    if not configured or not length:
        return tuple(sorted({padded_width(length), padded_width(limit)}))
    if limit > max(configured):
        long = f"row {known.row} has {length} tokens" if limit == length else f"{LIMITS[part]} is {limit}"
        raise SdftError(
            f"{option}={tuple(sorted(configured))}: {long}, more than the largest bucket: add a bucket of "
            f"{limit} or more, or lower {LIMITS[part]}."
        )
    return tuple(sorted(configured))
