"""Sampling from the student: one prefill, then `lax.while_loop`s over an explicit KV cache.

They end when every row has met an EOS; between them the cache grows. Each row draws from its own key, so that
what it samples depends neither on padding nor on the batch that it sits in.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sdft_jax.config import from_dict
from sdft_jax.config.settings import SamplingConfig
from sdft_jax.models import KVCache, Model, grow, layer_by_layer
from sdft_jax.sampling.layout import lay_out_for_decoding, prefill_model, unrolled
from sdft_jax.sampling.token_choice import choose
from sdft_jax.sharding import constrain, give_way
from sdft_jax.types import Params, Rollout

FIRST_SLOTS = 128
"""Tokens of a completion that the cache has slots for at first. When they are full their number doubles: a
token reads all slots, filled or not."""


def generate(
    model: Model,
    params: Params,
    tokens: Int[Array | np.ndarray, "B P"],
    attention_mask: Bool[Array | np.ndarray, "B P"],
    *,
    key: Array,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    eos_ids: int | Sequence[int] = (),
    pad_id: int = 0,
) -> Rollout:
    """Complete left-padded prompts; compiled once per shape and setting.

    Args:
        model: the decoder.
        params: its parameters; laid out for decoding (compute dtype, whole along the width) before the loop.
        tokens: left-padded prompts.
        attention_mask: True on real tokens.
        key: one PRNG key, folded with each row's position, or one key per row. A row with the same key has
            the same completion, whatever the padding and the other rows.
        max_new_tokens: N, the most tokens of a completion.
        temperature: 0 is greedy, and ignores the three truncations.
        top_k, top_p, min_p: truncations, applied after the temperature in this order, as in transformers;
            0, 1 and 0 are off. The vocabulary is sorted only for `top_p`.
        eos_ids: tokens that end a row; the first one is part of the completion.
        pad_id: what stands after it.

    Returns:
        Completions with mask and log-probabilities under the untruncated student at temperature 1.

    Raises:
        SdftError: a setting out of its range.
    """
    settings = dict(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    sampling = from_dict({"sampling": settings}, "generate").sampling
    stops = (eos_ids,) if isinstance(eos_ids, int) else tuple(int(i) for i in eos_ids)
    with model.matmul_precision():
        return compiled_sample(
            model,
            params,
            jnp.asarray(tokens),
            jnp.asarray(attention_mask, bool),
            row_keys(key, len(tokens)),
            sampling,
            stops,
            pad_id,
        )


@functools.partial(jax.jit, static_argnames="rows")
def row_keys(key: Array, rows: int) -> Key[Array, " B"]:
    """One typed key per row: `key` folded with each row's position, or `key` itself where it is per row."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 1:
        return key
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


class _Loop(NamedTuple):
    step: Int[Array, ""]
    cache: KVCache
    rollout: Rollout
    done: Bool[Array, " B"]


def sample(
    model: Model,
    params: Params,
    tokens: Int[Array, "B P"],
    attention_mask: Bool[Array, "B P"],
    keys: Key[Array, " B"],
    sampling: SamplingConfig,
    eos_ids: tuple[int, ...],
    pad_id: int,
) -> Rollout:
    """`generate` as a pure function of arrays, for use inside a jitted update."""
    (batch, prompt), length = tokens.shape, sampling.max_new_tokens
    ends = stages(length)
    with jax.named_scope("prefill"):
        hidden, cache = prefill_model(model).prefill(params, tokens, attention_mask, prompt + ends[0])
    model, params = lay_out_for_decoding(model, params)
    if unrolled(model.device.platform, model.config.num_hidden_layers):
        params, cache = layer_by_layer(params, cache)
    head, by_word = model.head(params), model.sharding and give_way(model.sharding, "vocab", "batch")

    def emit(loop: _Loop, hidden: Float[Array, "B D"]) -> _Loop:
        hidden = constrain(hidden, by_word, "batch", None)
        logits = jnp.einsum("bd,vd->bv", hidden, head, preferred_element_type=jnp.float32)
        logits = constrain(logits, by_word, "batch", "vocab")
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, loop.step)
        token = choose(logits, step_keys, sampling)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
        logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
        live = ~loop.done
        rollout = Rollout(
            tokens=loop.rollout.tokens.at[:, loop.step].set(jnp.where(live, token, pad_id)),
            mask=loop.rollout.mask.at[:, loop.step].set(live),
            logprobs=loop.rollout.logprobs.at[:, loop.step].set(jnp.where(live, logprob, 0.0)),
        )
        ended = jnp.isin(token, jnp.asarray(eos_ids, jnp.int32))
        return _Loop(loop.step + 1, loop.cache, rollout, loop.done | ended)

    def read_last(loop: _Loop) -> _Loop:
        last = jax.lax.dynamic_index_in_dim(loop.rollout.tokens, loop.step - 1, axis=1, keepdims=False)
        hidden, cache = model.decode(params, last, loop.cache)
        return emit(loop._replace(cache=cache), hidden)

    def decode(loop: _Loop, count: int) -> _Loop:
        """At most `count` further tokens of each row; counted from 0, so that the program tells its trips."""
        return jax.lax.while_loop(
            lambda state: (state[0] < count) & ~jnp.all(state[1].done),
            lambda state: (state[0] + 1, read_last(state[1])),
            (jnp.int32(0), loop),
        )[1]

    start = _Loop(
        jnp.zeros((), jnp.int32), cache, _no_tokens(batch, length, pad_id), jnp.zeros((batch,), bool)
    )
    with jax.named_scope("decode"):
        loop = decode(emit(start, hidden[:, -1]), ends[0] - 1)
        for before, end in itertools.pairwise(ends):
            loop = decode(loop._replace(cache=grow(loop.cache, prompt + end)), end - before)
    return loop.rollout


def _no_tokens(batch: int, length: int, pad_id: int) -> Rollout:
    return Rollout(
        tokens=jnp.full((batch, length), pad_id, jnp.int32),
        mask=jnp.zeros((batch, length), bool),
        logprobs=jnp.zeros((batch, length), jnp.float32),
    )


def stages(length: int) -> tuple[int, ...]:
    """Tokens of a completion that the cache has slots for, stage after stage; the last is `length`."""
    ends = [min(FIRST_SLOTS, length)]
    while ends[-1] < length:
        ends.append(min(2 * ends[-1], length))
    return tuple(ends)


compiled_sample = functools.partial(jax.jit, static_argnames=("model", "sampling", "eos_ids", "pad_id"))(
    sample
)
