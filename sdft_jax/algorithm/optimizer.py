"""AdamW with warm-up, decay and clipping, all of it optax.

The peak learning rate is part of the optimizer's state, not of the program: updates that differ in it alone
are one compilation, which a comparison of learning rates shares.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sdft_jax.config.settings import OptimizerConfig


class RateState(NamedTuple):
    """What the last part of the optimizer remembers; replicated on a mesh, saved in checkpoints."""

    peak: Float[Array, ""]
    """`optimizer.learning_rate`."""
    steps: Int[Array, ""]
    """Steps taken."""


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then `config.schedule` to the end of the run at `steps`."""
    share = _share_of_peak(config, steps)
    return lambda step: config.learning_rate * share(step)


def learning_rates(config: OptimizerConfig, steps: int) -> Float[np.ndarray, " steps"]:
    """Those of all steps, on the host: one asked for later would wait behind what the device is doing."""
    return np.asarray(jax.jit(jax.vmap(learning_rate(config, steps)))(jnp.arange(steps)))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm (unless 0), then AdamW at the scheduled rate.

    The peak of the schedule is read when a state is made; from there on the state's own counts.
    """
    clip = optax.clip_by_global_norm(config.clip) if config.clip > 0 else optax.identity()
    # The parts of optax.adamw, the last one with its rate in the state.
    adamw = optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay),
        _descend(config.learning_rate, _share_of_peak(config, steps)),
    )
    return optax.chain(clip, adamw)


def _share_of_peak(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of every step as a share of its highest value."""
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    warmup = min(warmup, steps)
    rest = max(steps - warmup, 1)
    decay = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "linear": optax.linear_schedule(1.0, 0.0, rest),
    }[config.schedule]
    # The first step already moves: step 0 has share 1 / warmup, not 0.
    rise = optax.linear_schedule(1 / max(warmup, 1), 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def _descend(peak: float, share: optax.Schedule) -> optax.GradientTransformation:
    """Times minus the learning rate, which is `share` of the peak that stands in the state."""

    def init(params: optax.Params) -> RateState:
        del params
        return RateState(jnp.asarray(peak, jnp.float32), jnp.zeros((), jnp.int32))

    def update(updates: optax.Updates, state: RateState, params: optax.Params | None = None):
        del params
        rate = -state.peak * share(state.steps)
        scaled = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        return scaled, state._replace(steps=optax.safe_increment(state.steps))

    return optax.GradientTransformation(init, update)
