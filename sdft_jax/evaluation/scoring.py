"""Accuracy of student and teacher, and how far a model has moved from its base."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdft_jax.algorithm.divergence import divergence
from sdft_jax.algorithm.state import sharding_of
from sdft_jax.algorithm.update import completion_hidden
from sdft_jax.config import Config
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.data import find_buckets, pad_batch
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.tasks import get_scorer
from sdft_jax.models import Model
from sdft_jax.reporting.progress import track
from sdft_jax.sampling.decode import generate
from sdft_jax.sharding import collect, spread
from sdft_jax.types import Params, Rollout, TokenBatch


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was answered, and whether it was right."""

    correct: tuple[bool, ...]
    completions: tuple[str, ...]
    lengths: tuple[int, ...]
    """Tokens of each completion."""
    kl_to_base: float | None
    """KL(model || base) in nats per token on the model's own answers; None where no base was given. The base
    always sees the plain prompt, so that a teacher's is the distance that the demonstration makes."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)

    @property
    def mean_length(self) -> float:
        """Mean tokens of a completion."""
        return sum(self.lengths) / len(self.lengths)


def evaluate(
    model: Model,
    params: Params,
    rows: EvalSet,
    tokenizer: Any,
    eos: tuple[int, ...],
    config: Config,
    *,
    teacher: bool = False,
    base: Params | None = None,
    active: bool = True,
    description: str = "evaluating",
) -> Evaluation:
    """Answer every row greedily and score it by `config.eval.task`.

    Args:
        model, params: what answers.
        rows: prompts and answers.
        tokenizer: decodes the completions.
        eos: tokens that end a completion.
        config: its `eval` and `sampling` sections.
        teacher: answer with the demonstration in context.
        base: parameters to measure the distance from.
        active: show a progress bar.
        description: its text.
    """
    score = get_scorer(config.eval.task)
    longest = config.eval.max_new_tokens or config.sampling.max_new_tokens
    completions: list[str] = []
    lengths: list[int] = []
    nats = tokens = 0.0
    batches = list(_batches(rows, config, tokenizer.pad_token_id))
    split = sharding_of(model).named("batch")
    for whole, count in track(batches, description, active=active):
        batch = spread(whole, split)
        prompt = (batch.teacher_prompt, batch.teacher_mask) if teacher else (batch.prompt, batch.prompt_mask)
        rollout = generate(
            model,
            params,
            *prompt,
            key=jax.random.key(0),
            eos_ids=eos,
            pad_id=tokenizer.pad_token_id,
            max_new_tokens=longest,
            temperature=0.0,
        )
        if base is not None:
            plain = (batch.prompt, batch.prompt_mask)
            total, number = _divergence_from(model, params, base, prompt, plain, rollout, batch.weight)
            nats, tokens = nats + float(total), tokens + float(number)
        ids, mask = (x[:count] for x in collect((rollout.tokens, rollout.mask)))
        lengths += mask.sum(axis=1).tolist()
        completions += [decode(tokenizer, row[keep]) for row, keep in zip(ids, mask, strict=True)]
    correct = tuple(score(text, row) for text, row in zip(completions, rows.examples, strict=True))
    return Evaluation(correct, tuple(completions), tuple(lengths), nats / tokens if tokens else None)


def sample_verdicts(
    model: Model,
    params: Params,
    rows: EvalSet,
    tokenizer: Any,
    eos: tuple[int, ...],
    config: Config,
    key: jax.Array,
    n: int,
) -> list[list[int]]:
    """For each row, which of `n` answers sampled by `config.sampling` are right (1) and wrong (0)."""
    score = get_scorer(config.eval.task)
    options = dataclasses.asdict(config.sampling) | (
        {"max_new_tokens": config.eval.max_new_tokens} if config.eval.max_new_tokens else {}
    )
    size = config.eval.batch_size
    pairs = [(row, encoded) for row, encoded in enumerate(rows.encoded) for _ in range(n)]
    verdicts: list[list[int]] = [[] for _ in rows.encoded]
    buckets = find_buckets(
        rows.encoded, dataclasses.replace(config.data, prompt_buckets=(), teacher_buckets=())
    )
    for start in track(range(0, len(pairs), size), "sampling"):
        part = pairs[start : start + size]
        batch = pad_batch([encoded for _, encoded in part], buckets, tokenizer.pad_token_id, size=size)
        batch = spread(batch, sharding_of(model).named("batch"))
        rollout = generate(
            model,
            params,
            batch.prompt,
            batch.prompt_mask,
            key=jax.random.fold_in(key, start),
            eos_ids=eos,
            pad_id=tokenizer.pad_token_id,
            **options,
        )
        ids, mask = collect((rollout.tokens, rollout.mask))
        for (row, _), tokens, keep in zip(part, ids, mask, strict=False):
            verdicts[row].append(int(score(decode(tokenizer, tokens[keep]), rows.examples[row])))
    return verdicts


def decode(tokenizer: Any, ids: np.ndarray) -> str:
    """Text of a completion, as a scorer reads it."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def _batches(rows: EvalSet, config: Config, pad_id: int) -> Iterator[tuple[TokenBatch, int]]:
    """Batches of one shape, and how many rows of each are real."""
    plain = dataclasses.replace(config.data, prompt_buckets=(), teacher_buckets=())
    buckets = find_buckets(rows.encoded, plain)
    size = config.eval.batch_size
    for start in range(0, len(rows.encoded), size):
        part = rows.encoded[start : start + size]
        yield pad_batch(part, buckets, pad_id, size=size), len(part)


@functools.partial(jax.jit, static_argnames="model")
def _divergence_from(
    model: Model,
    params: Params,
    base: Params,
    prompt: tuple[Array, Array],
    base_prompt: tuple[Array, Array],
    rollout: Rollout,
    weight: Float[Array, " B"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(sum of KL(model || base) over the completions' tokens, number of tokens); prompts with their masks."""
    weights = rollout.mask * weight[:, None]
    hidden, base_hidden = (
        completion_hidden(model, p, *x, rollout.tokens, rollout.mask)
        for p, x in ((params, prompt), (base, base_prompt))
    )
    total, _ = divergence(
        hidden,
        model.head(params),
        base_hidden,
        model.head(base),
        rollout.tokens,
        weights,
        DivergenceConfig(),
        sharding_of(model),
    )
    return total, jnp.sum(weights)
