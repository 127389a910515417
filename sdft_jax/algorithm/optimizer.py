"""AdamW, Lion and Adafactor with warm-up, decay and clipping, built from optax.

Bytes per weight of the state, beside the weight and its gradient:

| `optimizer.name` | moments                          | float32 | bfloat16 | float8 |
| ---------------- | -------------------------------- | ------- | -------- | ------ |
| `adamw`          | first and second                 | 8       | 4        | 2      |
| `lion`           | first                            | 4       | 2        | 1      |
| `adafactor`      | means of the second, float32     | < 0.1   |          |        |

Adafactor keeps the whole second moment of a matrix whose smaller side is below 32, such as the factors of
most adapters.

Muon is not offered: its state is as large as Lion's, and orthogonalizing a layer's matrices needs several
copies of them.

The peak learning rate is part of the optimizer's state, not of the program, so that a comparison of learning
rates compiles once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sdft_jax.algorithm.moments import as_float32, store_moments
from sdft_jax.algorithm.trainable import join, select
from sdft_jax.config.settings import OptimizerConfig
from sdft_jax.kernels.numerics import numerics

SMALLEST_FACTORED = 32
"""Adafactor keeps means only, if the two largest axes of a layer's parameter have at least this size; optax's
128 would exclude the attention of a model with a head dimension of 64."""


class RateState(NamedTuple):
    """The state of the learning rate; replicated on a mesh, saved in checkpoints."""

    peak: Float[Array, ""]
    """`optimizer.learning_rate`, per step."""
    steps: Int[Array, ""]
    """The number of steps taken."""


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the schedule: linear warm-up, then `config.schedule` to the end of the run at `steps`."""
    share = _share_of_peak(config, steps)
    return lambda step: config.learning_rate * share(step)


def learning_rates(config: OptimizerConfig, steps: int) -> Float[np.ndarray, " steps"]:
    """Return the rates of all steps as a host array.

    A rate computed later, on the device, would wait for the update that is running there.
    """
    with numerics():
        return np.asarray(jax.jit(jax.vmap(learning_rate(config, steps)))(jnp.arange(steps)))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return the optimizer: clipping by global norm (unless it is 0), then steps at the scheduled rate.

    The schedule's peak is read when a state is initialized; afterwards the state's own peak is used.
    Gradients and parameters of any dtype are read as float32, and the updates are float32.
    """
    clip = optax.clip_by_global_norm(config.clip) if config.clip > 0 else optax.identity()
    # the same as optax.adamw, optax.lion or optax.adafactor, but with the learning rate in the state
    steps_taken = optax.chain(
        _direction(config),
        optax.add_decayed_weights(config.weight_decay),
        _descend(config.learning_rate, _share_of_peak(config, steps)),
    )
    inner = optax.chain(clip, steps_taken)

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params):
        return inner.update(as_float32(updates), state, as_float32(params))

    return optax.GradientTransformation(inner.init, update)


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the transformation of gradients to steps of about 1 per weight."""
    if config.name == "adafactor":
        factored = optax.scale_by_factored_rms(min_dim_size_to_factor=SMALLEST_FACTORED)
        return _each_layer(optax.chain(factored, optax.clip_by_block_rms(1.0)))
    b1, b2 = config.constant("b1"), config.constant("b2")
    if config.name == "lion":
        return store_moments(optax.scale_by_lion(b1, b2), config.moments)
    return store_moments(optax.scale_by_adam(b1, b2, config.constant("eps")), config.moments)


def _each_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return `inner`, Adafactor, applied to the parameters of each layer alone, which are stacked on axis 0.

    It uses the shape of a parameter, and its mean, and would otherwise see all layers as one.
    """

    def init(params: optax.Params) -> optax.OptState:
        return _joined([_over_layers(inner.init, part)(part) for part in _parts(as_float32(params))])

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params):
        factored, empty = state
        parts = []
        for part in _parts(params):
            moments = (select(moment, part) for moment in factored[1:])
            own = optax.FactoredState(factored.count, *moments), empty
            parts.append(_over_layers(inner.update, part)(select(updates, part), own, part))
        return functools.reduce(join, [step for step, _ in parts]), _joined([new for _, new in parts])

    return optax.GradientTransformation(init, update)


def _parts(params: optax.Params) -> list[optax.Params]:
    """Return the parameters outside the layers, if there are any, and those of each number of layers.

    There are several numbers if layers differ in the parameters that they have.
    """
    layers = params.get("layers", {})
    outer = {name: leaf for name, leaf in params.items() if name != "layers"}
    counts = sorted({len(leaf) for leaf in layers.values()})
    parts = [{"layers": {name: x for name, x in layers.items() if len(x) == count}} for count in counts]
    return [outer, *parts] if outer else parts


def _over_layers(function: Callable[..., Any], part: optax.Params) -> Callable[..., Any]:
    """Return a function of Adafactor applied to each layer of a part, or to parameters outside the layers."""
    if "layers" not in part:
        return function
    state = optax.FactoredState(None, 0, 0, 0), optax.EmptyState()
    axes = {1: ((0,), state), 3: ((0, state, 0), (0, state))}
    return lambda *arguments: jax.vmap(function, *axes[len(arguments)])(*arguments)


def _joined(states: Sequence[optax.OptState]) -> optax.OptState:
    """Return the state of Adafactor of all parts."""
    (first, empty), *_ = states
    moments = (functools.reduce(join, [factored[i] for factored, _ in states]) for i in range(1, 4))
    return optax.FactoredState(first.count, *moments), empty


def _share_of_peak(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the schedule as a share of its peak."""
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    warmup = min(warmup, steps)
    rest = max(steps - warmup, 1)
    decay = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "linear": optax.linear_schedule(1.0, 0.0, rest),
    }[config.schedule]
    # the first step already moves the parameters: its share is 1 / warmup, not 0
    rise = optax.linear_schedule(1 / max(warmup, 1), 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def _descend(peak: float, share: optax.Schedule) -> optax.GradientTransformation:
    """Return the transformation that scales updates by minus the learning rate: `share` of the state's
    peak.
    """

    def init(params: optax.Params) -> RateState:
        del params
        return RateState(jnp.asarray(peak, jnp.float32), jnp.zeros((), jnp.int32))

    def update(updates: optax.Updates, state: RateState, params: optax.Params | None = None):
        del params
        rate = -state.peak * share(state.steps)
        scaled = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        return scaled, state._replace(steps=optax.safe_increment(state.steps))

    return optax.GradientTransformation(init, update)
