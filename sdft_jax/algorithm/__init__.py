"""The paper: rollout, teacher, divergence and the update that composes them in one `jax.jit`."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.algorithm.baselines import UPDATES, imitation_steps
    from sdft_jax.algorithm.optimizer import learning_rates, make_optimizer
    from sdft_jax.algorithm.state import (
        abstract_state,
        check_batch,
        check_rows,
        init_state,
        make_model,
        sharding_of,
    )
    from sdft_jax.algorithm.trainable import join
    from sdft_jax.algorithm.update import completion_hidden, make_update

__all__ = [
    "UPDATES",
    "abstract_state",
    "check_batch",
    "check_rows",
    "completion_hidden",
    "imitation_steps",
    "init_state",
    "join",
    "learning_rates",
    "make_model",
    "make_optimizer",
    "make_update",
    "sharding_of",
]
