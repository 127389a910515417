"""The decode loop: one prefill, then `lax.while_loop`s over an explicit cache.

A loop ends when every row has sampled an EOS; between loops the cache grows. Each row draws from its own key,
so that its completion depends neither on padding nor on the other rows of the batch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.kernels.numerics import numerics
from sdft_jax.kernels.platforms import unrolls_layers
from sdft_jax.models import Cache, Model, grow
from sdft_jax.models.head import head_logits
from sdft_jax.sampling.keys import row_keys
from sdft_jax.sampling.layout import lay_out_for_decoding, prefill_model
from sdft_jax.sampling.token_choice import choose_token, exclude_unknown
from sdft_jax.sharding import constrain, release_axes
from sdft_jax.types import NO_STOP, Params, Rollout, Sequences, StopTokens

FIRST_SLOTS = 128
"""The initial number of completion slots in the cache. It doubles whenever they are full, because attention
reads all slots, filled or not."""


@numerics()
def generate(
    model: Model,
    params: Params,
    prompt: Sequences,
    key: Array,
    sampling: SamplingConfig,
    stop: StopTokens = NO_STOP,
) -> Rollout:
    """Complete left-padded prompts; compiled once per shape and setting.

    Args:
        model: the decoder.
        params: its parameters; the loop uses a copy in the compute dtype, not split along the width.
        prompt: left-padded prompts, [B, P], as JAX or NumPy arrays.
        key: one PRNG key, into which each row's position is folded, or one key per row. A row with the same
            key has the same completion for any padding and any other rows.
        sampling: the maximum number of new tokens N, the temperature (0 is greedy) and the truncations, which
            are applied after the temperature in the order of transformers: top-k, top-p, min-p. Only top-p
            sorts.
        stop: the tokens that end a completion (the first one is part of it), the padding token, and the
            number of ids to sample from.

    Returns:
        Completions [B, N] with masks and log-probabilities under the untruncated student at temperature 1.
    """
    prompt = Sequences(jnp.asarray(prompt.tokens), jnp.asarray(prompt.mask, bool))
    # hashable, whatever the caller has
    stop = stop._replace(eos_ids=tuple(map(int, stop.eos_ids)), pad_id=int(stop.pad_id))
    return compiled_sample(model, params, prompt, row_keys(key, len(prompt.tokens)), sampling, stop)


class _Loop(NamedTuple):
    step: Int[Array, ""]
    cache: Cache
    rollout: Rollout
    done: Bool[Array, " B"]


def sample(
    model: Model,
    params: Params,
    prompt: Sequences,
    keys: Key[Array, " B"],
    sampling: SamplingConfig,
    stop: StopTokens,
) -> Rollout:
    """Complete left-padded prompts as a pure function of arrays, for use inside a jitted update.

    The arguments are those of `generate`, with one key per row.
    """
    (batch, width), length = prompt.tokens.shape, sampling.max_new_tokens
    sizes = cache_sizes(length)
    with model.numerics():
        with jax.named_scope("prefill"):
            hidden, cache = prefill_model(model).prefill(params, prompt, width + sizes[0], length)
        model, params = lay_out_for_decoding(model, params)
        if unrolls_layers(model.platform, model.architecture.num_hidden_layers):
            params, cache = model.layer_by_layer(params, cache)
        emit, decode = _decoder(model, params, keys, sampling, stop)
        start = _Loop(
            jnp.zeros((), jnp.int32), cache, _empty_rollout(batch, length, stop), jnp.zeros((batch,), bool)
        )
        with jax.named_scope("decode"):
            loop = decode(emit(start, hidden[:, -1]), sizes[0] - 1)
            for size, next_size in itertools.pairwise(sizes):
                loop = decode(loop._replace(cache=grow(loop.cache, width + next_size)), next_size - size)
        return loop.rollout


def _decoder(
    model: Model, params: Params, keys: Key[Array, " B"], sampling: SamplingConfig, stop: StopTokens
) -> tuple[Callable[[_Loop, Float[Array, "B D"]], _Loop], Callable[[_Loop, int], _Loop]]:
    """Return functions that sample one token per row from its hidden state, and up to a number of tokens."""
    head, vocab_sharding = model.head(params), release_axes(model.sharding, "vocab", "batch")
    split = bool(vocab_sharding.split("vocab"))

    def emit(loop: _Loop, hidden: Float[Array, "B D"]) -> _Loop:
        """Sample the next token of each row from its hidden state."""
        hidden = constrain(hidden, vocab_sharding, "batch", None)
        logits = constrain(head_logits(hidden, head), vocab_sharding, "batch", "vocab")
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, loop.step)
        candidates = exclude_unknown(logits, stop.known)
        token = choose_token(candidates, step_keys, sampling, model.platform, split)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
        logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
        live = ~loop.done
        rollout = Rollout(
            tokens=loop.rollout.tokens.at[:, loop.step].set(jnp.where(live, token, stop.pad_id)),
            mask=loop.rollout.mask.at[:, loop.step].set(live),
            logprobs=loop.rollout.logprobs.at[:, loop.step].set(jnp.where(live, logprob, 0.0)),
        )
        ended = jnp.isin(token, jnp.asarray(stop.eos_ids, jnp.int32))
        return _Loop(loop.step + 1, loop.cache, rollout, loop.done | ended)

    def read_last(loop: _Loop) -> _Loop:
        """Read the token that was sampled last, and sample the next one."""
        last = jax.lax.dynamic_index_in_dim(loop.rollout.tokens, loop.step - 1, axis=1, keepdims=False)
        hidden, cache = model.decode(params, last, loop.cache, ~loop.done)
        return emit(loop._replace(cache=cache), hidden)

    def decode(loop: _Loop, count: int) -> _Loop:
        """Sample at most `count` more tokens per row.

        The counter starts at 0, so that the trip count can be read from the compiled program.
        """
        return jax.lax.while_loop(
            lambda state: (state[0] < count) & ~jnp.all(state[1].done),
            lambda state: (state[0] + 1, read_last(state[1])),
            (jnp.int32(0), loop),
        )[1]

    return emit, decode


def _empty_rollout(batch: int, length: int, stop: StopTokens) -> Rollout:
    return Rollout(
        tokens=jnp.full((batch, length), stop.pad_id, jnp.int32),
        mask=jnp.zeros((batch, length), bool),
        logprobs=jnp.zeros((batch, length), jnp.float32),
    )


def cache_sizes(length: int) -> tuple[int, ...]:
    """Return the successive numbers of completion slots in the cache; the last one is `length`.

    For example, 300 tokens are decoded with 128, then 256, then 300 slots.
    """
    sizes = [min(FIRST_SLOTS, length)]
    while sizes[-1] < length:
        sizes.append(min(2 * sizes[-1], length))
    return tuple(sizes)


compiled_sample = functools.partial(jax.jit, static_argnames=("model", "sampling", "stop"))(sample)
