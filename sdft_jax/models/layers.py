"""The order in which the layers of a decoder run: in one scan, or one by one.

Parameters are stacked by name over the layers that have them, and states over the layers of a kind. Every
step of a scan runs one program:

| layers                                         | a step is | the kind of a layer                          |
| ---------------------------------------------- | --------- | -------------------------------------------- |
| of one kind, or without states that differ     | a layer   | is data, which selects window and rope table |
| with parameters or states of each kind         | a period  | is static, and may change the program        |

For example, the layers s s s f s s s f s s have two steps of four layers each, and two layers after them.

Layers that share keys and values are a part of their own, with periods of its own: s s f s s f S S F S S F
are two parts of two steps each. What layers of the second part read from the first is constant in its scan.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sdft_jax.models.architecture import Architecture

Carry = Any
Index = Any
"""An integer, which is traced in a scan and static outside."""
Stacks = Mapping[str, jax.Array]
"""The parameters of layers: [L, ...] each, of one layer [...]."""
EMBEDDING_OF_LAYER = "embedding"
"""The name, among the parameters of a layer, of the embeddings of the tokens for this layer, [B, T, A]."""
RunLayer = Callable[[Carry, Stacks, Index, Index, Index], Carry]
"""A function (carry, parameters of the layer, its kind, its index among the layers of this kind, its number)
-> carry."""


def run_layers(
    config: Architecture, run_layer: RunLayer, carry: Carry, layers: Any, part: range, with_states: bool
) -> Carry:
    """Return the carry after the layers of a part.

    Args:
        config: the architecture of the parameters.
        run_layer: runs one layer.
        carry: the carry before the first layer.
        layers: the parameters, stacked or a tuple of layers; and, under `EMBEDDING_OF_LAYER`, the embeddings
            for each layer, if the model has them.
        part: one of `Architecture.parts`.
        with_states: True if the carry includes the states of the layers; there is no gradient then.
    """
    if isinstance(layers, tuple):
        for layer in part:
            kind, index = config.kind_of_layer[layer], _index_in_kind(config)[layer]
            carry = run_layer(carry, layers[layer], kind, index, layer)
        return carry
    if len(config.kinds) == 1 or (config.uniform and not with_states):
        return _scan_layers(config, run_layer, carry, layers)
    return _scan_periods(config, run_layer, carry, layers, part, with_states)


def separate_layers(config: Architecture, layers: Stacks) -> tuple[dict[str, jax.Array], ...]:
    """Return the parameters of each layer in arrays of their own."""
    return tuple(
        {name: layers[name][at] for name, at in places.items() if name != EMBEDDING_OF_LAYER}
        for places in _places(config)
    )


def _scan_layers(config: Architecture, run_layer: RunLayer, carry: Carry, layers: Stacks) -> Carry:
    kinds = jnp.array(config.kind_of_layer, jnp.int32)

    def step(carry: Carry, layer: Any) -> tuple[Carry, None]:
        own, kind, index = layer
        return run_layer(carry, own, 0 if len(config.kinds) == 1 else kind, index, index), None

    return jax.lax.scan(step, carry, (layers, kinds, jnp.arange(config.num_hidden_layers)))[0]


def _scan_periods(
    config: Architecture, run_layer: RunLayer, carry: Carry, layers: Stacks, part: range, with_states: bool
) -> Carry:
    """Scan over whole periods, then run the remaining layers; with one period, run all layers one by one.

    With a gradient, the scan slices the parameters of a period: the gradient of an array that all steps read
    would be added up over its whole length in each of them. Without one, each layer reads its own part of the
    stack in place: the whole periods would be a copy if other layers remain.
    """
    period = config.period(part)
    steps, rest = divmod(len(part), period)
    if steps == 1:  # the compiler dissolves a loop of one step, so that it is none
        steps, rest = 0, len(part)
    places, indices = _places(config), _index_in_kind(config)
    names = collections.Counter(name for own in places[part.start :][:period] for name in own)
    kinds = collections.Counter(config.kind_of_layer[part.start :][:period])
    first = {name: places[layer][name] for layer in reversed(part) for name in places[layer]}

    def run(carry: Carry, count: int, step: Index, own: Stacks | None) -> Carry:
        for layer in part[:count]:
            weights = {
                name: own[name][at - first[name]] if own else _at(layers[name], step * names[name] + at)
                for name, at in places[layer].items()
            }
            kind = config.kind_of_layer[layer]
            index, number = step * kinds[kind] + indices[layer], step * period + layer
            carry = run_layer(carry, weights, kind, index, number)
        return carry

    whole, remaining = None, None
    if not with_states:
        ends = {name: at + steps * names[name] for name, at in first.items()}
        whole = {n: x[first[n] : ends[n]] for n, x in layers.items() if n in first}
        whole = {n: x.reshape(steps, names[n], *x.shape[1:]) for n, x in whole.items()}
        remaining = {n: x[ends[n] :] for n, x in layers.items() if n in first}
    if steps:
        carry, _ = jax.lax.scan(
            lambda carry, own: (run(carry, period, *own), None), carry, (jnp.arange(steps), whole)
        )
    return run(carry, rest, steps, remaining)


def _at(stack: jax.Array, index: Index) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)


@functools.cache
def _places(config: Architecture) -> Sequence[Mapping[str, int]]:
    """Return, for each layer, the index of each of its parameters in the stack of that name."""
    embedding = [EMBEDDING_OF_LAYER] if config.layer_embedding else []
    count: collections.Counter[str] = collections.Counter()
    places = []
    for kind in config.kind_of_layer:
        names = [tensor.name for tensor in config.tensors_of(config.kinds[kind])] + embedding
        places.append({name: count[name] for name in names})
        count.update(names)
    return places


@functools.cache
def _index_in_kind(config: Architecture) -> Sequence[int]:
    """Return, for each layer, the number of earlier layers of its kind."""
    kinds = config.kind_of_layer
    return [kinds[:layer].count(kind) for layer, kind in enumerate(kinds)]
