"""`sdft sample`: answers to prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sdft_jax.config import Config
from sdft_jax.data.batches import find_buckets, pad_batch
from sdft_jax.data.encoding import encode_all
from sdft_jax.data.examples import Example
from sdft_jax.sampling import generate, make_key
from sdft_jax.sharding import to_host
from sdft_jax.training.export import load_prompt_format, load_speaker


def run(config: Config, prompts: Sequence[str], n: int = 1) -> list[list[str]]:
    """Return `n` completions of each prompt, sampled by `config.sampling`."""
    examples = [Example(text, "", None, row, "prompt") for row, text in enumerate(prompts)]
    data = dataclasses.replace(config.data, overlong="error", prompt_buckets=(), teacher_buckets=())
    format = load_prompt_format(config)
    encoded, _ = encode_all(examples, format, data, teacher=False)
    speaker = load_speaker(config, format)
    repeated = [row for row in encoded for _ in range(n)]
    parts = speaker.model.sharding.size("batch")
    size = -(-len(repeated) // parts) * parts  # the mesh must divide the rows
    batch = pad_batch(repeated, find_buckets(encoded, data), speaker.stop.pad_id, size=size)
    key = make_key(config.train.seed)
    rollout = generate(speaker.model, speaker.params, batch.prompt, key, config.sampling, speaker.stop)
    ids, mask = to_host((rollout.tokens, rollout.mask))
    texts = [speaker.decode(row[keep]) for row, keep in zip(ids, mask, strict=True)][: len(repeated)]
    return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]
