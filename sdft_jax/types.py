"""The pytrees that cross rooms. Nothing here knows how they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

Params = Mapping[str, Any]
"""Nested dictionary of arrays; a model's layers are stacked on axis 0 (of `layer_by_layer`: a tuple)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Prompts of one update as fixed-shape arrays, made on the host.

    Prompts are left-padded, so that both roles' last prompt token stands in the same column;
    demonstrations are right-padded. Masks are True on real tokens.
    """

    prompt: Int[Array, "B P"]
    """What the student sees."""
    prompt_mask: Bool[Array, "B P"]
    teacher_prompt: Int[Array, "B Q"]
    """What the teacher sees: the same question with the demonstration in context."""
    teacher_mask: Bool[Array, "B Q"]
    demonstration: Int[Array, "B N"]
    """The demonstration as a completion (with EOS), for methods that imitate it, such as SFT."""
    demonstration_mask: Bool[Array, "B N"]
    row: Int[Array, " B"]
    """Index of the example in its source; names the row in messages."""
    weight: Float[Array, " B"]
    """Sample weight; 0 for a row that only fills the batch."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """Completions, right-padded: the student's samples, or what stands in their place.

    `mask` is True through the first EOS, inclusive. `logprobs` are those of the untruncated
    student (temperature 1, no top-k/top-p/min-p) and 0 where `mask` is False.
    """

    tokens: Int[Array, "B N"]
    mask: Bool[Array, "B N"]
    logprobs: Float[Array, "B N"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that an update reads and writes; a checkpoint of it resumes bit-identically."""

    step: Int[Array, ""]
    params: Params
    """Trainable parameters of the student (the master copy)."""
    frozen: Params
    """Parameters that do not move, shared by student and teacher."""
    teacher: Params
    """Teacher's copy of the trainable parameters; empty for the `live` schedule."""
    opt_state: Any
    key: UInt32[Array, " K"]
    """Raw key data; an update derives its randomness from it and the step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What one update reports; it stays on the device until somebody looks."""

    scalars: Mapping[str, Float[Array, ""]]
    rollout: Rollout
    """The completions that were trained on: sampled ones, or demonstrations."""
    divergence: Float[Array, "B N"]
    """Loss of each completion token, in nats."""
    log_ratio: Float[Array, "B N"]
    """log T - log S of each completion token: the implicit reward."""
