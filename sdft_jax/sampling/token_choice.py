"""The choice of a token from its logits: temperature, top-k, top-p, min-p, and the Gumbel-max trick."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sdft_jax.config.settings import SamplingConfig


def choose(logits: Float[Array, "B V"], keys: Key[Array, " B"], sampling: SamplingConfig) -> Int[Array, " B"]:
    """Draw one token per row by the Gumbel-max trick, or take the likeliest at temperature 0."""
    if sampling.temperature == 0:
        return first_largest(logits)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    kept = truncate(logits / sampling.temperature, sampling)
    return first_largest(kept + noise)


def first_largest(x: Float[Array, "B V"]) -> Int[Array, " B"]:
    """`jnp.argmax` over fewer than 2^24 numbers, by two plain maxima: XLA vectorises only those on a CPU."""
    size = x.shape[-1]
    from_behind = size - jnp.arange(size, dtype=jnp.float32)
    largest = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), from_behind, 1.0)
    return size - jnp.max(largest, axis=-1).astype(jnp.int32)


def truncate(logits: Float[Array, "B V"], sampling: SamplingConfig) -> Float[Array, "B V"]:
    """Logits with -inf outside top-k, then top-p, then min-p, each of what the one before has left."""
    vocabulary = logits.shape[-1]
    k = min(sampling.top_k, vocabulary) or vocabulary
    if k < vocabulary or sampling.top_p < 1:
        # At most k candidates survive, so top-p needs no more of the vocabulary sorted than that.
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
    """Smallest logit of the shortest prefix whose probability reaches `top_p`."""
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
