"""Generation until a stop string, in rounds: rows that have stopped make room for the others.

A stop string is a text, which only the tokenizer can find. So the model generates `ROUND` tokens of each row,
the host looks for stop strings, and the next round continues the rows without one. A task that allows 1,024
tokens and needs 100 costs one round instead of eight; reading a row again costs one forward pass a round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Array, Key

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.evaluation.batching import Batch, pad, plan_batches
from sdft_jax.kernels.numerics import numerics
from sdft_jax.models.speaker import Speaker
from sdft_jax.sampling import generate
from sdft_jax.sampling.keys import fold_keys
from sdft_jax.sharding import to_global, to_host

ROUND = 128
"""Number of tokens of a round: with so many, the decode loop never grows its cache."""

Tokens = tuple[int, ...]
Track = Callable[[Iterable[Batch], str], Iterator[Batch]]
"""A function that yields batches and shows a progress bar with a description, such as `reporter.track`."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """The choice of tokens and the end of a completion."""

    sampling: SamplingConfig
    """Temperature, truncations and the maximum number of new tokens."""
    until: tuple[str, ...]
    """Texts that end a completion; it includes the first one, and may have tokens after it."""
    eos_ids: tuple[int, ...]
    """Tokens that end a completion; it includes the first one."""


def complete(
    speaker: Speaker,
    prompts: Sequence[Tokens],
    keys: Key[Array, " B"],
    generation: Generation,
    batch_size: int,
    track: Track = lambda batches, description: iter(batches),
) -> Iterator[tuple[int, Tokens]]:
    """Yield the index of each prompt and its completion, at most through an EOS, as soon as it has ended.

    Args:
        speaker: the model; all ids of its tokenizer may be sampled.
        prompts: at least one token each.
        keys: one PRNG key per prompt: its completion does not depend on the other prompts.
        generation: the choice of tokens, and the end of a completion.
        batch_size: the number of rows of a batch that is at most `batching.FULL_WIDTH` wide.
        track: shows progress over the batches of a round.
    """
    most = generation.sampling.max_new_tokens
    completions: list[Tokens] = [()] * len(prompts)
    pending = list(range(len(prompts)))
    for first in range(0, most, ROUND):
        last = min(first + ROUND, most)
        rows = [prompts[index] + completions[index] for index in pending]
        size = dataclasses.replace(generation.sampling, max_new_tokens=last - first)
        part = dataclasses.replace(generation, sampling=size)
        batches = plan_batches(
            [(len(row),) for row in rows], batch_size, speaker.model.sharding.size("batch")
        )
        remaining = []
        for batch in track(batches, f"generation, tokens {first + 1} to {last}"):
            members = [pending[place] for place in batch.members]
            round_keys = fold_keys(
                keys[np.resize(members, batch.rows)], np.full(batch.rows, first, np.uint32)
            )
            texts = _generate(speaker, [rows[place] for place in batch.members], round_keys, part, batch)
            for index, new in zip(members, texts, strict=True):
                completions[index] += new
                if last == most or _has_ended(speaker, completions[index], generation):
                    yield index, completions[index]
                else:
                    remaining.append(index)
        pending = sorted(remaining)


@numerics()
def _generate(
    speaker: Speaker, rows: Sequence[Tokens], keys: Key[Array, " B"], generation: Generation, batch: Batch
) -> list[Tokens]:
    """Return the tokens of one round."""
    stop = speaker.stop._replace(eos_ids=generation.eos_ids)
    prompt = to_global(pad(rows, batch, stop.pad_id, left=True), speaker.model.sharding.named("batch"))
    rollout = generate(speaker.model, speaker.params, prompt, keys, generation.sampling, stop)
    tokens, mask = to_host((rollout.tokens, rollout.mask))
    return [tuple(new[keep].tolist()) for new, keep in zip(tokens, mask, strict=True)][: len(rows)]


def _has_ended(speaker: Speaker, completion: Tokens, generation: Generation) -> bool:
    if completion[-1] in generation.eos_ids:
        return True
    text = speaker.decode(completion) if generation.until else ""
    return any(stop in text for stop in generation.until)
