"""The pytrees that packages exchange."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

Params = Mapping[str, Any]
"""A nested dictionary of arrays. A model's layers are stacked on axis 0, or are a tuple of layers while
decoding without a scan over them."""


class StopTokens(NamedTuple):
    """The tokens that end a completion, the token that pads it, and the tokens that it may consist of;
    hashable, so static in `jax.jit`.
    """

    eos_ids: tuple[int, ...] = ()
    pad_id: int = 0
    known: int | None = None
    """The number of ids of the tokenizer, from 0: the model's other ids only pad its embedding, and are never
    sampled. None to sample from all ids of the model."""


NO_STOP = StopTokens()
"""Stop tokens for completions of the maximum length: no token ends a completion."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """A batch of padded token sequences."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    """True on real tokens, False on padding."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """The rows of one update as fixed-shape arrays, made on the host.

    Prompts are left-padded, so that the last prompt token of both roles is in the same column; targets are
    right-padded.
    """

    prompt: Sequences
    """The student's prompt, [B, P]."""
    teacher_prompt: Sequences
    """The teacher's prompt, [B, Q]: the same question with the demonstration in context."""
    target: Sequences
    """The completion to imitate, including EOS, [B, N]; N is 0 if no method of the run imitates one."""
    row: Int[Array, " B"]
    """Index of the example in its source; error messages name it."""
    weight: Float[Array, " B"]
    """Sample weight; 0 for a row that only fills the batch."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """Right-padded completions: samples of the student or the teacher, or given targets."""

    tokens: Int[Array, "B N"]
    mask: Bool[Array, "B N"]
    """True through the first EOS, inclusive."""
    logprobs: Float[Array, "B N"]
    """Log-probability of each token under the untruncated student (temperature 1, all ids of the model, no
    top-k, top-p or min-p); 0 where `mask` is False."""

    @property
    def completion(self) -> Sequences:
        """The tokens and their mask."""
        return Sequences(self.tokens, self.mask)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that an update reads and writes.

    A run that resumes from a checkpoint of it is bit-identical to an uninterrupted run.
    """

    step: Int[Array, ""]
    params: Params
    """Trainable parameters of the student (the master copy)."""
    frozen: Params
    """Parameters that do not train, shared by student and teacher."""
    teacher: Params
    """The teacher's copy of the trainable parameters; empty for the `live` schedule."""
    opt_state: Any
    key: UInt32[Array, " K"]
    """Raw key data; an update derives its randomness from it and from the step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """The results of one update; they stay on the device until they are read."""

    scalars: Mapping[str, Float[Array, ""]]
    rollout: Rollout
    """The completions that were trained on."""
    divergence: Float[Array, "B N"]
    """Loss of each completion token, in nats."""
    log_ratio: Float[Array, "B N"]
    """log T - log S of each completion token: the implicit reward, in nats."""
