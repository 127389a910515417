"""AdamW with warm-up, decay and clipping, built from optax.

The peak learning rate is part of the optimizer's state, not of the program, so that a comparison of learning
rates compiles once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sdft_jax.config.settings import OptimizerConfig
from sdft_jax.kernels.numerics import numerics


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
    """Return the optimizer: clipping by global norm (unless it is 0), then AdamW at the scheduled rate.

    The schedule's peak is read when a state is initialized; afterwards the state's own peak is used.
    """
    clip = optax.clip_by_global_norm(config.clip) if config.clip > 0 else optax.identity()
    # the same as optax.adamw, but with the learning rate in the state
    adamw = optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay),
        _descend(config.learning_rate, _share_of_peak(config, steps)),
    )
    return optax.chain(clip, adamw)


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
