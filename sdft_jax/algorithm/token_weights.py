"""The weight of each completion token in the loss, which is `sum(weights * divergence)`.

A token of weight 0 contributes neither loss nor gradient.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdft_jax.config.settings import ObjectiveConfig
from sdft_jax.types import Rollout


def truncated(rollout: Rollout, eos_ids: tuple[int, ...]) -> Bool[Array, " B"]:
    """Return the rows whose completion filled all N positions without an EOS."""
    ended = jnp.isin(rollout.tokens[:, -1], jnp.asarray(eos_ids, rollout.tokens.dtype))
    return rollout.mask[:, -1] & ~ended


def loss_mask(rollout: Rollout, eos_ids: tuple[int, ...], config: ObjectiveConfig) -> Bool[Array, "B N"]:
    """Return the mask of tokens that carry loss: through the first EOS, without the first `skip_tokens`.

    Skipped tokens stay in the context of both roles (paper, section 5: the teacher's phrases, such as "Based
    on the text", leak there). `config.truncated` sets the treatment of truncated completions.
    """
    position = jnp.arange(rollout.tokens.shape[1])[None, :]
    mask = rollout.mask & (position >= config.skip_tokens)
    if config.truncated == "mask":
        mask &= ~truncated(rollout, eos_ids)[:, None]
    return mask


def aggregation_weights(
    mask: Bool[Array, "B N"], sample_weight: Float[Array, " B"], config: ObjectiveConfig
) -> Float[Array, "B N"]:
    """Return the weight of each token in the loss, 0 outside `mask`.

    `sequence`: the mean over a sequence's tokens, then over sequences (released code; a sequence without
    tokens counts as 0); `token`: the mean over all tokens; `sum`: their sum. An empty batch has zeros.
    """
    weights = mask * sample_weight[:, None]
    if config.aggregation == "sum":
        return weights
    if config.aggregation == "token":
        return weights / _or_one(jnp.sum(weights))
    tokens = jnp.sum(mask, axis=1, keepdims=True).astype(jnp.float32)
    return weights / _or_one(tokens) / _or_one(jnp.sum(sample_weight))


def importance_ratio(
    trainer_logprobs: Float[Array, "B N"], rollout: Rollout, mask: Bool[Array, "B N"]
) -> Float[Array, "B N"]:
    """Return exp(log p_trainer - log p_sampler) of each sampled token, 1 outside `mask`.

    Sampler and trainer have the same weights, so the ratio should be 1 up to rounding; it is logged to verify
    that.
    """
    return jnp.exp(jnp.where(mask, trainer_logprobs - rollout.logprobs, 0.0))


def importance_weights(
    ratio: Float[Array, "B N"], mask: Bool[Array, "B N"], config: ObjectiveConfig
) -> Float[Array, "B N"]:
    """Return the capped ratio of each token, or its mean over the sequence's tokens (released code)."""
    capped = jnp.minimum(ratio, config.importance_cap)
    if config.importance == "token":
        return capped
    tokens = jnp.sum(mask, axis=1, keepdims=True).astype(jnp.float32)
    mean = jnp.sum(jnp.where(mask, capped, 0.0), axis=1, keepdims=True) / _or_one(tokens)
    return jnp.broadcast_to(mean, ratio.shape)


def masked_mean(x: Float[Array, "B N"], mask: Bool[Array, "B N"]) -> Float[Array, ""]:
    """Return the mean over the tokens in `mask`; 0 if there are none."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / _or_one(jnp.sum(mask).astype(jnp.float32))


def _or_one(count: Float[Array, ...]) -> Float[Array, ...]:
    return jnp.where(count > 0, count, 1.0)
