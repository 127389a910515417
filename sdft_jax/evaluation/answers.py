"""Sampled answers to prompts that a user gives, without reference answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sdft_jax.config import Config
from sdft_jax.data.batches import find_buckets, pad_batch
from sdft_jax.data.encoding import Encoded, PromptFormat, encode_all, make_format
from sdft_jax.data.examples import Example, Message
from sdft_jax.models.speaker import Speaker
from sdft_jax.sampling import generate, make_key
from sdft_jax.sharding import to_host

Prompt = str | Sequence[Message]
"""The text of a single user turn, or chat messages that end with a user message."""

_WIDTHS = tuple(1 << bits for bits in range(5, 25))
"""The padded lengths of prompts, in tokens: similar lengths share a compiled program. The last is the maximum
of `data.max_prompt`."""


def answer(speaker: Speaker, prompts: Sequence[Prompt], config: Config, n: int = 1) -> list[list[str]]:
    """Return `n` answers to each prompt, sampled by `config.sampling` with the seed `config.train.seed`.

    Raises:
        SdftError: a prompt cannot be encoded, or is longer than `data.max_prompt`.
    """
    format = make_format(speaker.tokenizer, config.data, speaker.eos_ids, speaker.vocab_size)
    return answer_encoded(speaker, encode_prompts(prompts, format, config), config, n)


def encode_prompts(prompts: Sequence[Prompt], format: PromptFormat, config: Config) -> list[Encoded]:
    """Return the tokens of prompts. Raises SdftError if one cannot be encoded, or is too long."""
    examples = [
        Example(prompt if isinstance(prompt, str) else tuple(prompt), "", None, row, "prompt")
        for row, prompt in enumerate(prompts)
    ]
    data = dataclasses.replace(config.data, overlong="error")
    return encode_all(examples, format, data, teacher=False)[0]


def answer_encoded(speaker: Speaker, prompts: Sequence[Encoded], config: Config, n: int) -> list[list[str]]:
    """Return `n` answers to each prompt, as `answer`."""
    repeated = [row for row in prompts for _ in range(n)]
    parts = speaker.model.sharding.size("batch")
    size = -(-len(repeated) // parts) * parts  # the mesh must divide the rows
    data = dataclasses.replace(config.data, prompt_buckets=_WIDTHS, teacher_buckets=())
    batch = pad_batch(repeated, find_buckets(prompts, data), speaker.stop.pad_id, size=size)
    key = make_key(config.train.seed)
    rollout = generate(speaker.model, speaker.params, batch.prompt, key, config.sampling, speaker.stop)
    ids, mask = to_host((rollout.tokens, rollout.mask))
    count = len(repeated)  # the others fill the batch
    texts = [
        speaker.decode(row[keep], thoughts=True) for row, keep in zip(ids[:count], mask[:count], strict=True)
    ]
    return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]
