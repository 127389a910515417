"""The completions of the rows of an evaluation, greedy or sampled, batch by batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdft_jax.algorithm.chunked_loss import FactoredLogits
from sdft_jax.algorithm.divergence import divergence
from sdft_jax.config import Config
from sdft_jax.config.settings import DataConfig, DivergenceConfig, SamplingConfig
from sdft_jax.data.batches import Buckets, find_buckets, pad_batch, padded_width
from sdft_jax.data.encoding import Encoded
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.grading import Track
from sdft_jax.kernels.numerics import numerics
from sdft_jax.models import Model
from sdft_jax.models.speaker import Speaker
from sdft_jax.sampling import generate, make_key, sample_keys
from sdft_jax.sharding import to_global, to_host
from sdft_jax.types import Params, Sequences

STUDENT, TEACHER, SAMPLED = "student", "teacher", "sampled"


@dataclasses.dataclass(frozen=True)
class Role:
    """The way in which a model answers the rows."""

    name: str
    sampling: SamplingConfig
    samples: int = 1
    """The number of completions of a row."""
    teacher: bool = False
    """Answer with the demonstration in context."""
    seed: int = 0
    """The seed of the samples."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """One completion of a row."""

    index: int
    """Index of the row in the evaluation's rows."""
    sample: int
    """Index among the completions of the row, from 0."""
    text: str
    length: int
    """The number of tokens, with the stop token."""
    truncated: bool
    """True if the completion has the maximum length and no stop token."""
    nats: float | None
    """The sum over its tokens of KL(model || base); None without a base."""


def greedy_role(config: Config, teacher: bool = False) -> Role:
    """Return the role that answers greedily, alone or with the demonstration in context."""
    sampling = SamplingConfig(max_new_tokens=_max_new_tokens(config), temperature=0.0)
    return Role(TEACHER if teacher else STUDENT, sampling, teacher=teacher)


def sampled_role(config: Config, samples: int, seed: int) -> Role:
    """Return the role that samples by `eval.temperature` and `eval.top_p`, and else by `sampling`.

    Raises:
        SdftError: the temperature is 0, so that all samples of a row would be equal.
    """
    options = config.eval
    default = config.sampling
    sampling = dataclasses.replace(
        default,
        max_new_tokens=_max_new_tokens(config),
        temperature=default.temperature if options.temperature is None else options.temperature,
        top_p=default.top_p if options.top_p is None else options.top_p,
    )
    if sampling.temperature == 0:
        raise SdftError(
            f"{samples} samples of a row at temperature 0 are all equal: set eval.temperature above 0, or "
            "eval.samples=0."
        )
    return Role(SAMPLED, sampling, samples, seed=seed)


def requested_roles(config: Config) -> tuple[Role, ...]:
    """Return the roles of `sdft evaluate`: the student, and those that `eval` adds."""
    options = config.eval
    return (
        greedy_role(config),
        *((greedy_role(config, teacher=True),) if options.teacher else ()),
        *((sampled_role(config, options.samples, config.train.seed),) if options.samples else ()),
    )


def _max_new_tokens(config: Config) -> int:
    return config.eval.max_new_tokens or config.sampling.max_new_tokens


def complete(
    speaker: Speaker,
    rows: EvalSet,
    config: Config,
    role: Role,
    *,
    base: Params | None = None,
    done: Collection[tuple[int, int]] = (),
    track: Track = iter,
) -> Iterator[list[Completion]]:
    """Yield the completions of each batch; a completion does not depend on the batch that it is in.

    With `data.prompt_buckets` (for the teacher `data.teacher_buckets`), a batch has prompts of one bucket as
    far as possible, the longest first.

    Args:
        speaker: the model that answers.
        rows: the prompts.
        config: its `eval` and `data` sections are read.
        role: prompt, sampling and number of completions.
        base: the parameters that the KL is measured from; None for no KL. The base always sees the prompt
            without the demonstration.
        done: (index, sample) of the completions that are not needed.
        track: shows progress over the batches.
    """
    work = _Work(speaker, rows, role, _buckets(rows.encoded, config.data), config.eval.batch_size, base)
    for part in track(_batches(work, done)):
        yield _complete(work, part)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The arguments of `complete`, and the shapes of its batches."""

    speaker: Speaker
    rows: EvalSet
    role: Role
    buckets: Buckets
    size: int
    """The number of completions of a batch."""
    base: Params | None


def _buckets(rows: Sequence[Encoded], config: DataConfig) -> Buckets:
    """Return the configured buckets, and one for the longest row if it is longer than all of them."""

    def covering(buckets: tuple[int, ...], longest: int) -> tuple[int, ...]:
        return buckets if not buckets or longest <= max(buckets) else (*buckets, padded_width(longest))

    prompt, teacher = (max(len(getattr(row, name)) for row in rows) for name in ("prompt", "teacher_prompt"))
    return find_buckets(
        rows,
        dataclasses.replace(
            config,
            prompt_buckets=covering(config.prompt_buckets, prompt),
            teacher_buckets=covering(config.teacher_buckets, teacher),
        ),
    )


def _batches(work: _Work, done: Collection[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Return (index, sample) of each batch: the rows of the widest bucket first, and else in their order."""
    role, size, encoded = work.role, work.size, work.rows.encoded
    widths = work.buckets.teacher_prompt if role.teacher else work.buckets.prompt

    def width(index: int) -> int:
        length = len(encoded[index].teacher_prompt if role.teacher else encoded[index].prompt)
        return next(bucket for bucket in widths if bucket >= length)

    pairs = [(index, sample) for index in range(len(encoded)) for sample in range(role.samples)]
    pending = sorted((pair for pair in pairs if pair not in done), key=lambda pair: -width(pair[0]))
    return [pending[start : start + size] for start in range(0, len(pending), size)]


@numerics()
def _complete(work: _Work, part: Sequence[tuple[int, int]]) -> list[Completion]:
    """Return the completions of one batch."""
    speaker, role, encoded = work.speaker, work.role, work.rows.encoded
    model, params, stop = speaker.model, speaker.params, speaker.stop
    filled = [*part, *[part[-1]] * (work.size - len(part))]
    host_batch = pad_batch([encoded[index] for index, _ in filled], work.buckets, stop.pad_id)
    batch = to_global(host_batch, model.sharding.named("batch"))
    prompt = batch.teacher_prompt if role.teacher else batch.prompt
    # by the row's number in its source: a sample is the same for any other rows and any batch size
    own = np.asarray(
        [(encoded[index].row, encoded[index].turn or 0, sample) for index, sample in filled], np.uint32
    )
    keys = sample_keys(make_key(role.seed), *jax.device_put(tuple(own.T)))
    rollout = generate(model, params, prompt, keys, role.sampling, stop)
    nats = None
    if work.base is not None:
        both = ((params, prompt), (work.base, batch.prompt))
        nats = to_host(_nats(model, *both, rollout.completion))
    ids, mask = to_host((rollout.tokens, rollout.mask))
    completions = []
    for i, (index, sample) in enumerate(part):
        tokens = ids[i][mask[i]]
        ended = int(tokens[-1]) in stop.eos_ids
        sum_of_nats = None if nats is None else float(nats[i])
        completions.append(
            Completion(
                index, sample, speaker.decode(tokens, thoughts=True), len(tokens), not ended, sum_of_nats
            )
        )
    return completions


@functools.partial(jax.jit, static_argnames="model")
def _nats(
    model: Model,
    role: tuple[Params, Sequences],
    base: tuple[Params, Sequences],
    completion: Sequences,
) -> Float[Array, " B"]:
    """Return the sum of KL(role || base) over the tokens of each completion.

    A role is a pair of parameters and prompts.
    """
    with model.numerics():
        role_logits, base_logits = (
            FactoredLogits(model.completion_hidden(params, prompt, completion), model.head(params))
            for params, prompt in (role, base)
        )
        weights = completion.mask.astype(jnp.float32)
        _, statistics = divergence(
            role_logits, base_logits, completion.tokens, weights, DivergenceConfig(), model.sharding
        )
        return jnp.sum(jnp.where(completion.mask, statistics.divergence, 0.0), axis=1)
