"""`sdft sample`: answers to prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from sdft_jax.algorithm.state import sharding_of
from sdft_jax.commands.evaluate import load_weights, model_tokenizer
from sdft_jax.config import Config
from sdft_jax.data import find_buckets, pad_batch
from sdft_jax.data.encoding import encode_all
from sdft_jax.data.examples import Example
from sdft_jax.evaluation.scoring import decode
from sdft_jax.sampling.decode import generate
from sdft_jax.sharding import collect


def answer(config: Config, prompts: Sequence[str], n: int = 1) -> list[list[str]]:
    """`n` completions of each prompt, sampled by `config.sampling`."""
    directory, tokenizer, eos = model_tokenizer(config)
    examples = [Example(text, "", None, row, "prompt") for row, text in enumerate(prompts)]
    data = dataclasses.replace(config.data, overlong="error", prompt_buckets=(), teacher_buckets=())
    encoded, _ = encode_all(examples, tokenizer, data, eos=eos, teacher=False)
    model, params = load_weights(config, directory)
    repeated = [row for row in encoded for _ in range(n)]
    parts = sharding_of(model).size("batch")
    filled = -(-len(repeated) // parts) * parts  # the mesh must divide them
    batch = pad_batch(repeated, find_buckets(encoded, data), tokenizer.pad_token_id, size=filled)
    rollout = generate(
        model,
        params,
        batch.prompt,
        batch.prompt_mask,
        key=jax.random.key(config.train.seed),
        eos_ids=eos,
        pad_id=tokenizer.pad_token_id,
        **dataclasses.asdict(config.sampling),
    )
    ids, mask = collect((rollout.tokens, rollout.mask))
    texts = [decode(tokenizer, row[keep]) for row, keep in zip(ids, mask, strict=True)][: len(repeated)]
    return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]
