"""Dynamic Fine-Tuning: supervised fine-tuning with each token's loss times the token's own probability.

Wu et al. 2025, "On the Generalization of SFT", arXiv 2508.05629: the loss of a token is -sg(p) log p, where
p = S(target) and sg stops the gradient, so that the gradient at the logits is p (S - onehot(target)).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sdft_jax.algorithm.baselines.sft import cross_entropy, imitate
from sdft_jax.algorithm.state import Step, compile_step
from sdft_jax.config import Config
from sdft_jax.models import Model
from sdft_jax.types import Metrics, TokenBatch, TrainState


def make_dft_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Step:
    """The jitted update `(TrainState, TokenBatch) -> (TrainState, Metrics)`; as `make_sft_update`."""
    del eos_ids, pad_id

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        return imitate(model, optimizer, config, state, batch, batch.demonstration_mask, dynamic_loss)

    return compile_step(update, model, optimizer, config)


def dynamic_loss(logits: Float[Array, "n v"], target: Int[Array, " n"], vocab_axes: tuple[str, ...]):
    """Value -p log p with p = S(target), and its gradient p (S - onehot(target)): p itself has none."""
    (logprob, _), value, d_logits = cross_entropy(logits, target, vocab_axes)
    p = jnp.exp(logprob)
    return (logprob, p * value), p * value, p[:, None] * d_logits
