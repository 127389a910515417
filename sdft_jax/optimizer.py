"""AdamW with warm-up, decay and clipping, all of it optax."""

from __future__ import annotations

import optax

from sdft_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then `config.schedule` to the end of the run at `steps`."""
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    warmup = min(warmup, steps)
    rest = max(steps - warmup, 1)
    decay = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
    }[config.schedule]
    # The first step already moves: step 0 has rate lr / warmup, not 0.
    rise = optax.linear_schedule(
        config.learning_rate / max(warmup, 1), config.learning_rate, max(warmup - 1, 1)
    )
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm (unless 0), then AdamW at the scheduled rate."""
    clip = optax.clip_by_global_norm(config.clip) if config.clip > 0 else optax.identity()
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return optax.chain(clip, adamw)
