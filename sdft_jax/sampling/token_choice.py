"""The choice of a token from logits: temperature, top-k, top-p, min-p, and the Gumbel-max trick."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.kernels.argmax import argmax


def choose_token(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    sampling: SamplingConfig,
    platform: str,
    split: bool = False,
) -> Int[Array, " B"]:
    """Sample one token per row by the Gumbel-max trick, or return the most likely one at temperature 0."""
    if sampling.temperature == 0:
        return argmax(logits, platform, split)
    # "low": the mode, which a setting of JAX would choose otherwise
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32, mode="low"))(keys)
    return argmax(truncate(logits / sampling.temperature, sampling) + noise, platform, split)


def exclude_unknown(logits: Float[Array, "B V"], known: int | None) -> Float[Array, "B V"]:
    """Return the logits with -inf from id `known` on: ids that the tokenizer does not have."""
    size = logits.shape[-1]
    if known is None or known >= size:
        return logits
    return jnp.where(jnp.arange(size)[None, :] < known, logits, -jnp.inf)


def truncate(logits: Float[Array, "B V"], sampling: SamplingConfig) -> Float[Array, "B V"]:
    """Return the logits with -inf outside top-k, then top-p, then min-p, each applied to the tokens that the
    previous one keeps.
    """
    vocabulary = logits.shape[-1]
    k = min(sampling.top_k, vocabulary) or vocabulary
    if k < vocabulary or sampling.top_p < 1:
        # At most k candidates remain, so that top-p sorts no more of the vocabulary than that.
        candidates = jax.lax.top_k(logits, k)[0]
        logits = jnp.where(logits < candidates[:, -1:], -jnp.inf, logits)
        if sampling.top_p < 1:
            threshold = _nucleus_threshold(candidates, sampling.top_p)
            logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if sampling.min_p > 0:
        # p >= min_p * max p, as a comparison of logits
        floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return logits


def _nucleus_threshold(descending: Float[Array, "B k"], top_p: float) -> Float[Array, "B 1"]:
    """Return the smallest logit of the shortest prefix whose probability reaches `top_p`."""
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
