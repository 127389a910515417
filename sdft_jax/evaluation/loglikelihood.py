"""Log-likelihoods of given continuations, and whether greedy decoding would produce them.

Requests that differ in the last token only, such as the letters of a multiple-choice question, share a row:
its hidden states are computed once. The head is applied to the positions that are scored, a chunk at a time,
so that no array of shape [B, T, V] exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.algorithm.chunked_loss import FactoredLogits, chunked_loss, logsumexp, token_ids, vocab_sum
from sdft_jax.evaluation.batching import Batch, pad, plan_batches
from sdft_jax.kernels.numerics import numerics
from sdft_jax.models import Model
from sdft_jax.models.speaker import Speaker
from sdft_jax.sampling.layout import prefill_model
from sdft_jax.sharding import to_global, to_host
from sdft_jax.types import Params, Sequences

Tokens = tuple[int, ...]


class Request(NamedTuple):
    """A continuation to score, as tokens."""

    context: Tokens
    """At least one token."""
    continuation: Tokens
    """At least one token, and no more than the model's maximum length."""

    def cut(self, max_length: int) -> int:
        """Return the number of tokens that `read` removes from the left of the context."""
        return max(0, len(self.context) + len(self.continuation) - 1 - max_length)

    def read(self, max_length: int) -> Tokens:
        """Return the tokens that the model reads: all but the last one, and at most the last `max_length`."""
        return (self.context + self.continuation)[:-1][-max_length:]


class Score(NamedTuple):
    """The score of a continuation."""

    logprob: float
    """Sum over the tokens of the continuation, in nats."""
    is_greedy: bool
    """True if every token is the most likely one."""


class Limits(NamedTuple):
    """The sizes of one call of the model."""

    max_length: int
    """Maximum number of tokens that the model reads; longer contexts lose their first tokens."""
    batch_size: int
    """Number of rows of a batch that is at most `batching.FULL_WIDTH` wide."""
    chunk: int
    """Number of tokens per device whose logits are in memory at one time."""


class _Row(NamedTuple):
    """The tokens that the model reads, and the requests that they answer."""

    tokens: Tokens
    requests: dict[Tokens, list[int]]
    """Continuation -> indices of the requests."""

    @property
    def slots(self) -> int:
        """The number of tokens to score."""
        return sum(map(len, self.requests))


def score_continuations(
    speaker: Speaker,
    requests: Sequence[Request],
    limits: Limits,
    track: Callable[[Iterable[Batch]], Iterator[Batch]] = iter,
) -> Iterator[tuple[int, Score]]:
    """Yield the index and the score of every request, batch by batch.

    Args:
        speaker: the model; its log-likelihoods are those of the whole vocabulary, in float32.
        requests: contexts and continuations.
        limits: the sizes of one call of the model.
        track: shows progress over the batches.
    """
    rows = _shared_rows(requests, limits.max_length)
    sizes = [(len(row.tokens), row.slots) for row in rows]
    parts = speaker.model.sharding.size("batch")
    for batch in track(plan_batches(sizes, limits.batch_size, parts)):
        logprobs, greedy = _score_batch(speaker, [rows[index] for index in batch.members], batch, limits)
        for place, member in enumerate(batch.members):
            start = 0
            for continuation, indices in rows[member].requests.items():
                span = slice(start, start + len(continuation))
                start = span.stop
                logprob = float(logprobs[place, span].sum(dtype=np.float64))
                score = Score(logprob, bool(greedy[place, span].all()))
                yield from ((index, score) for index in indices)


@numerics()
def _score_batch(speaker: Speaker, rows: Sequence[_Row], batch: Batch, limits: Limits) -> Any:
    """Return the log-probability of each slot [B, S], and True where it is the most likely token."""
    sequences = pad([row.tokens for row in rows], batch, speaker.stop.pad_id, left=False)
    host = (sequences, *_slots(rows, batch.rows))
    arrays = to_global(host, speaker.model.sharding.named("batch"))
    return to_host(_token_scores(speaker.model, speaker.params, *arrays, limits.chunk))


def _shared_rows(requests: Sequence[Request], max_length: int) -> list[_Row]:
    """Return one row for all requests that the model answers with the same hidden states."""
    rows: dict[Tokens, _Row] = {}
    for index, request in enumerate(requests):
        tokens = request.read(max_length)
        row = rows.setdefault(tokens, _Row(tokens, {}))
        row.requests.setdefault(request.continuation, []).append(index)
    return list(rows.values())


def _slots(rows: Sequence[_Row], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions [B, S] whose hidden states predict the targets [B, S]; 0 where none are left.

    S is a power of 4. For example, the row 5 6 7 with the continuations (8) and (7, 9) has the positions
    2, 1, 2 and the targets 8, 7, 9.
    """
    most = max(row.slots for row in rows)
    width = next(4**power for power in range(1, 13) if 4**power >= most)
    positions, targets = np.zeros((2, count, width), np.int32)
    for place, row in enumerate(rows):
        flat = [
            (len(row.tokens) - len(continuation) + offset, token)
            for continuation in row.requests
            for offset, token in enumerate(continuation)
        ]
        positions[place, : len(flat)], targets[place, : len(flat)] = zip(*flat, strict=True)
    return positions, targets


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def _token_scores(
    model: Model,
    params: Params,
    sequences: Sequences,
    positions: Int[Array, "B S"],
    targets: Int[Array, "B S"],
    chunk: int,
) -> tuple[Float[Array, "B S"], Bool[Array, "B S"]]:
    """Return the log-probability of each target, and True if it is the most likely token."""
    with model.numerics():
        hidden = model.hidden_states(params, sequences)
        scored = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
        logits = FactoredLogits(scored, model.head(params))
        weights = jnp.ones(targets.shape, jnp.float32)
        # every device scores whole rows: the mesh need not divide S
        sharding = prefill_model(model).sharding
        return chunked_loss(_score_chunk, (logits,), targets, weights, chunk, sharding)[1]


def _score_chunk(
    logits: Float[Array, "n v"], target: Int[Array, " n"], vocab_axes: tuple[str, ...]
) -> tuple[tuple[Float[Array, " n"], Bool[Array, " n"]], Float[Array, " n"], Float[Array, "n v"]]:
    """Return the scores of a chunk as the statistics of a token loss, whose gradient is never read.

    Of several tokens with the maximum, the first one is greedy, as in `argmax`.
    """
    ids = token_ids(logits, vocab_axes)[None, :]
    chosen = vocab_sum(jnp.where(ids == target[:, None], logits, 0.0), vocab_axes)
    preferred = (logits > chosen[:, None]) | ((logits == chosen[:, None]) & (ids < target[:, None]))
    logprob = chosen - logsumexp(logits, vocab_axes)[:, 0]
    return (logprob, vocab_sum(preferred.astype(jnp.float32), vocab_axes) == 0), logprob, logits
