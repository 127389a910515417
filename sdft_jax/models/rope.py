"""Rotary position embedding and the scaling types of published checkpoints.

Frequencies are the same as in `transformers.modeling_rope_utils` (types default, linear, llama3, yarn and
longrope, proportional); angles are computed in float32.

longrope (LongRoPE; arXiv 2402.13753; Phi-3 and Phi-4-mini) has two sets of frequencies: short ones for rows
of up to `original_max_position_embeddings` tokens, and long ones for longer rows. The length of a row, which
selects the set for all of its positions, is:

| program                       | length of a row                                              |
| ----------------------------- | ------------------------------------------------------------ |
| forward pass of sequences     | its number of tokens without padding                         |
| sampling                      | that of the prompt, plus the maximum number of new tokens    |
| update on sampled completions | that of the prompt, plus the maximum number of new tokens    |
| update on given completions   | that of the prompt and of the completion, without padding    |
| rounds of an lm-eval suite    | that of the tokens so far, plus those of the next round      |

Forward passes of sequences equal those of transformers row by row; in a batch, transformers applies the
length of the longest row to all of them. In sampling, transformers begins with short frequencies, and
computes the cache again with long ones when a row passes the original length. Here such a row has long ones
from its first position on, as in vLLM, which chooses by the maximum length of its rows. Completions of rows
that cannot pass the original length, and of prompts that are longer, equal those of transformers. A sampled
completion has the same length in the update, so that the function that sampled it also scores it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdft_jax.errors import SdftError

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "proportional")
"""The types in config.json."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """One rotary embedding. Fields have the names of `rope_parameters` in config.json.

    `attention_factor` multiplies cosine and sine (yarn, longrope); `llama_4_scaling_beta` scales queries;
    `partial_rotary_factor` is the share of each head that is rotated, from its first dimension on, or, in the
    type proportional, from the first dimension of each half on; the other fields determine the frequencies.
    """

    rope_theta: float
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    llama_4_scaling_beta: float = 0.0
    partial_rotary_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    """The divisor of each frequency in rows of up to the original length (longrope)."""
    long_factor: tuple[float, ...] = ()
    """The same in longer rows."""

    def rotated_pairs(self, head_dim: int) -> int:
        """Return the number of pairs of dimensions that are rotated."""
        return int(head_dim * self.partial_rotary_factor) // 2


NO_ROPE = Rope(1.0, "none")
"""The embedding of layers without one: all angles are zero."""


def rope_from_dict(parameters: Mapping[str, Any], theta: float, max_position_embeddings: int) -> Rope:
    """Return the Rope of a `rope_parameters` (transformers 5) or `rope_scaling` (transformers 4) dictionary.

    Args:
        parameters: the dictionary; empty for the embedding without scaling.
        theta: the base frequency if the dictionary has no `rope_theta`.
        max_position_embeddings: the context length, used if the dictionary has no original context length.

    Raises:
        SdftError: the type is not one of `ROPE_TYPES`, or a parameter is missing.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise SdftError(f"rope type '{kind}' is not supported; supported: {', '.join(ROPE_TYPES)}.")
    base = parameters.get("rope_theta")
    share = float(parameters.get("partial_rotary_factor", 1.0))
    rope = Rope(float(theta if base is None else base), kind, partial_rotary_factor=share)
    if kind == "default":
        return rope
    if kind == "proportional":
        return dataclasses.replace(rope, factor=float(parameters.get("factor", 1.0)))
    original = parameters.get("original_max_position_embeddings") or max_position_embeddings
    try:
        factor = parameters.get("factor") if kind == "longrope" else parameters["factor"]
        rope = dataclasses.replace(
            rope,
            factor=float(max_position_embeddings / original if factor is None else factor),
            original_max_position_embeddings=int(original),
        )
        if kind == "llama3":
            low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
            rope = dataclasses.replace(rope, low_freq_factor=float(low), high_freq_factor=float(high))
        if kind == "longrope":
            short, long = (tuple(map(float, parameters[f"{name}_factor"])) for name in ("short", "long"))
            rope = dataclasses.replace(rope, short_factor=short, long_factor=long)
    except KeyError as error:
        raise SdftError(
            f"rope type '{kind}' requires the key {error} in rope_parameters (or rope_scaling)."
        ) from None
    if kind == "longrope":
        rope = dataclasses.replace(rope, attention_factor=_longrope_attention_factor(parameters, rope))
    if kind == "yarn":
        rope = dataclasses.replace(
            rope,
            attention_factor=_yarn_attention_factor(parameters, rope.factor),
            beta_fast=float(parameters.get("beta_fast") or 32),
            beta_slow=float(parameters.get("beta_slow") or 1),
            truncate=bool(parameters.get("truncate", True)),
        )
    return rope


def inverse_frequencies(rope: Rope, head_dim: int, long: bool = False) -> Float[np.ndarray, " R"]:
    """Return the angle per position of each of the R pairs of dimensions, rounded from float64.

    R is half of the dimensions that are rotated: H / 2 if these are all. In the type proportional R is H / 2:
    the last pairs have the angle 0, and frequencies do not depend on the number of the others.

    Args:
        rope: the embedding.
        head_dim: the dimension of a head, H.
        long: return the frequencies of rows that are longer than the original length (longrope).
    """
    if rope.rope_type == "proportional":
        pairs = rope.rotated_pairs(head_dim)
        inverse = rope.rope_theta ** -(np.arange(0, 2 * pairs, 2) / head_dim) / rope.factor
        return np.concatenate([inverse, np.zeros(head_dim // 2 - pairs)]).astype(np.float32)
    head_dim = int(head_dim * rope.partial_rotary_factor)
    inverse = rope.rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if rope == NO_ROPE:
        inverse = np.zeros_like(inverse)
    elif rope.rope_type == "linear":
        inverse = inverse / rope.factor
    elif rope.rope_type == "llama3":
        inverse = _llama3(inverse, rope)
    elif rope.rope_type == "yarn":
        inverse = _yarn(inverse, rope, head_dim)
    elif rope.rope_type == "longrope":
        inverse = inverse / np.array(rope.long_factor if long else rope.short_factor)
    return inverse.astype(np.float32)


def rope_table(
    rope: Rope, head_dim: int, positions: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Return the cosine and sine of the angles at these positions in rows of these lengths, in float32."""
    frequencies: Any = inverse_frequencies(rope, head_dim)[None, None, :]
    if rope.rope_type == "longrope":
        is_long = lengths[:, None, None] > rope.original_max_position_embeddings
        frequencies = jnp.where(is_long, inverse_frequencies(rope, head_dim, long=True), frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def query_factors(
    ropes: Sequence[Rope], positions: Int[Array, "B T"]
) -> Float[Array, "kinds B T 1 1"] | None:
    """Return the factor on rotated queries at these positions, for each rope; None if all factors are one.

    It is 1 + beta log(1 + floor(position / original length)): queries far behind the original context, whose
    softmax has more terms, are longer (Llama 4; also Ministral 3).
    """
    if not any(rope.llama_4_scaling_beta for rope in ropes):
        return None
    return jnp.stack([_query_factor(rope, positions[..., None, None]) for rope in ropes])


def _query_factor(rope: Rope, positions: Array) -> Array:
    if not rope.llama_4_scaling_beta:
        return jnp.ones(positions.shape, jnp.float32)
    turns = positions // rope.original_max_position_embeddings
    return 1.0 + rope.llama_4_scaling_beta * jnp.log1p(turns.astype(jnp.float32))


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T R"], sin: Float[Array, "B T R"]
) -> Float[Array, "B T N H"]:
    """Rotate each head by its position. Dimension i is paired with i + R, as in Hugging Face checkpoints, and
    those from 2 R on are not rotated.
    """
    pairs = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*rotated, rest] if rest.shape[-1] else rotated, axis=-1).astype(x.dtype)


def _llama3(inverse: np.ndarray, rope: Rope) -> np.ndarray:
    """Divide low frequencies by `factor`, leave high ones unchanged, and interpolate between them."""
    turns = rope.original_max_position_embeddings * inverse / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * inverse / rope.factor + smooth * inverse


def _yarn(inverse: np.ndarray, rope: Rope, head_dim: int) -> np.ndarray:
    """Divide low frequencies by `factor`, leave high ones unchanged, and interpolate linearly in between."""

    def dimension(turns: float) -> float:
        """Return the pair of dimensions that makes this number of turns over the original context."""
        wavelength = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0
    interpolated = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    return interpolated * inverse / rope.factor + (1 - interpolated) * inverse


def _longrope_attention_factor(parameters: Mapping[str, Any], rope: Rope) -> float:
    """Return the given factor on cosine and sine, or the one that longrope derives from `factor`."""
    attention_factor = parameters.get("attention_factor")
    if attention_factor is not None:
        return float(attention_factor)
    if rope.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    """Return the given factor on cosine and sine, or the one that yarn derives from `factor`."""

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    attention_factor = parameters.get("attention_factor")
    if attention_factor is not None:
        return float(attention_factor)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)
