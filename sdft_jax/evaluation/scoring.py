"""Greedy accuracy of student and teacher, and the distance of a model from its base."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.algorithm.chunked_loss import FactoredLogits
from sdft_jax.algorithm.divergence import divergence
from sdft_jax.config import Config
from sdft_jax.config.settings import DataConfig, DivergenceConfig, SamplingConfig
from sdft_jax.data.batches import find_buckets, pad_batch
from sdft_jax.data.examples import Example
from sdft_jax.errors import reason
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.tasks import Scorer, get_scorer
from sdft_jax.kernels.numerics import numerics
from sdft_jax.models import Model
from sdft_jax.models.speaker import Speaker
from sdft_jax.sampling import generate, make_key
from sdft_jax.sharding import to_global, to_host
from sdft_jax.types import Params, Sequences, TokenBatch

Track = Callable[[Iterable], Iterator]
"""A function that yields batches and shows a progress bar, such as
`functools.partial(reporter.track, description=...)`."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """An exception that a scorer raised; its answer counts as wrong."""

    index: int
    """Index of the row in the evaluation's rows."""
    place: str
    """The source and the row."""
    reason: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The answers to the rows of an evaluation, with their verdicts."""

    correct: tuple[bool, ...]
    completions: tuple[str, ...]
    lengths: tuple[int, ...]
    """Length of each completion, in tokens."""
    kl_to_base: float | None
    """KL(model || base) in nats per token on the model's own answers; None without a base. The base always
    sees the prompt without the demonstration, so a teacher's KL measures the effect of the demonstration."""
    faults: tuple[Fault, ...] = ()
    """The faults of the scorer."""

    @property
    def accuracy(self) -> float:
        """The share of correct answers."""
        return sum(self.correct) / len(self.correct)

    @property
    def mean_length(self) -> float:
        """The mean length of a completion, in tokens."""
        return sum(self.lengths) / len(self.lengths)


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The verdicts on sampled answers."""

    correct: list[list[int]]
    """1 for correct and 0 for wrong, by row and sample."""
    faults: tuple[Fault, ...]
    """The faults of the scorer."""


def fault_note(faults: Sequence[Fault], config: Config) -> list[str]:
    """Return a sentence on the faults of the scorer, with the first rows; no sentence if there are none."""
    if not faults:
        return []
    rows = list(dict.fromkeys(f"{fault.place} ({fault.reason})" for fault in faults))
    named = "; ".join(rows[:3]) + (f"; and {len(rows) - 3} more" if len(rows) > 3 else "")
    scorer = f"the scorer of eval.task={config.eval.task}"
    return [f"{scorer} failed on {len(faults)} answers, which count as wrong: {named}."]


@numerics()
def evaluate(
    speaker: Speaker,
    rows: EvalSet,
    config: Config,
    *,
    teacher: bool = False,
    base: Params | None = None,
    track: Track = iter,
) -> Evaluation:
    """Answer every row greedily, and score the answers with the scorer of `config.eval.task`.

    Args:
        speaker: the model that answers.
        rows: prompts and reference answers.
        config: its `eval`, `sampling` and `data` sections are read.
        teacher: answer with the demonstration in context.
        base: the parameters that the KL is measured from; None for no KL.
        track: shows progress over the batches.
    """
    model, params, stop = speaker.model, speaker.params, speaker.stop
    score = get_scorer(config.eval.task)
    greedy = SamplingConfig(
        max_new_tokens=config.eval.max_new_tokens or config.sampling.max_new_tokens, temperature=0.0
    )
    completions: list[str] = []
    lengths: list[int] = []
    nats = tokens = 0.0
    for host_batch, count in track(list(_batches(rows, config, stop.pad_id))):
        batch = to_global(host_batch, model.sharding.named("batch"))
        prompt = batch.teacher_prompt if teacher else batch.prompt
        rollout = generate(model, params, prompt, make_key(0), greedy, stop)
        if base is not None:
            both = ((params, prompt), (base, batch.prompt))
            batch_nats, batch_tokens = _divergence_from(model, *both, rollout.completion, batch.weight)
            nats, tokens = nats + float(batch_nats), tokens + float(batch_tokens)
        ids, mask = (x[:count] for x in to_host((rollout.tokens, rollout.mask)))
        lengths += mask.sum(axis=1).tolist()
        completions += [speaker.decode(row[keep]) for row, keep in zip(ids, mask, strict=True)]
    answers = enumerate(zip(completions, rows.examples, strict=True))
    verdicts = [_judge(score, text, example, i) for i, (text, example) in answers]
    return Evaluation(
        tuple(verdict is True for verdict in verdicts),
        tuple(completions),
        tuple(lengths),
        nats / tokens if tokens else None,
        _faults(verdicts),
    )


def sample_verdicts(
    speaker: Speaker, rows: EvalSet, config: Config, key: Array, n: int, track: Track = iter
) -> Verdicts:
    """Return the verdicts on `n` sampled answers to each row.

    Args:
        speaker: the model that answers.
        rows: prompts and reference answers.
        config: its `eval`, `sampling` and `data` sections are read.
        key: the random key of the samples.
        n: the number of answers per row.
        track: shows progress over the batches.
    """
    model, stop = speaker.model, speaker.stop
    score = get_scorer(config.eval.task)
    sampling = dataclasses.replace(
        config.sampling, max_new_tokens=config.eval.max_new_tokens or config.sampling.max_new_tokens
    )
    size = config.eval.batch_size
    pairs = [(row, encoded) for row, encoded in enumerate(rows.encoded) for _ in range(n)]
    verdicts: list[list[bool | Fault]] = [[] for _ in rows.encoded]
    buckets = find_buckets(rows.encoded, _one_bucket(config))
    for start in track(range(0, len(pairs), size)):
        part = pairs[start : start + size]
        batch = pad_batch([encoded for _, encoded in part], buckets, stop.pad_id, size=size)
        batch = to_global(batch, model.sharding.named("batch"))
        batch_key = jax.random.fold_in(key, start)
        rollout = generate(model, speaker.params, batch.prompt, batch_key, sampling, stop)
        ids, mask = to_host((rollout.tokens, rollout.mask))
        for (row, _), tokens, keep in zip(part, ids, mask, strict=False):
            verdicts[row].append(_judge(score, speaker.decode(tokens[keep]), rows.examples[row], row))
    correct = [[int(verdict is True) for verdict in samples] for samples in verdicts]
    return Verdicts(correct, _faults(itertools.chain.from_iterable(verdicts)))


def _judge(score: Scorer, completion: str, example: Example, index: int) -> bool | Fault:
    """Return the verdict on an answer, or the fault of a scorer that raises an exception of any type."""
    try:
        return bool(score(completion, example))
    except Exception as error:
        return Fault(index, example.location, f"{type(error).__name__}: {reason(error)}")


def _faults(verdicts: Iterable[bool | Fault]) -> tuple[Fault, ...]:
    return tuple(verdict for verdict in verdicts if isinstance(verdict, Fault))


def _one_bucket(config: Config) -> DataConfig:
    """Return the data settings without buckets: all batches of an evaluation have one shape."""
    return dataclasses.replace(config.data, prompt_buckets=(), teacher_buckets=())


def _batches(rows: EvalSet, config: Config, pad_id: int) -> Iterator[tuple[TokenBatch, int]]:
    """Yield batches of one shape, each with the number of its rows that are not padding."""
    buckets = find_buckets(rows.encoded, _one_bucket(config))
    size = config.eval.batch_size
    for start in range(0, len(rows.encoded), size):
        part = rows.encoded[start : start + size]
        yield pad_batch(part, buckets, pad_id, size=size), len(part)


@functools.partial(jax.jit, static_argnames="model")
def _divergence_from(
    model: Model,
    role: tuple[Params, Sequences],
    base: tuple[Params, Sequences],
    completion: Sequences,
    weight: Float[Array, " B"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of KL(role || base) over the completions' tokens, in nats, and the number of tokens.

    A role is a pair of parameters and prompts.
    """
    with model.numerics():
        weights = completion.mask * weight[:, None]
        role_logits, base_logits = (
            FactoredLogits(model.completion_hidden(params, prompt, completion), model.head(params))
            for params, prompt in (role, base)
        )
        total, _ = divergence(
            role_logits, base_logits, completion.tokens, weights, DivergenceConfig(), model.sharding
        )
        return total, jnp.sum(weights)
