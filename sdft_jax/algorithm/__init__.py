"""The paper: rollout, teacher, divergence and the update that composes them in one `jax.jit`."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.algorithm.chunked_loss import FactoredLogits
    from sdft_jax.algorithm.learner import Learner, check_batch, check_rows, make_learner, make_model
    from sdft_jax.algorithm.optimizer import learning_rates, make_optimizer
    from sdft_jax.algorithm.rollout import student_rollout
    from sdft_jax.algorithm.state import (
        abstract_state,
        init_state,
        stored_part,
        stored_student,
        student_params,
    )
    from sdft_jax.algorithm.trainable import join
    from sdft_jax.algorithm.update import distill, make_update

__all__ = [
    "FactoredLogits",
    "Learner",
    "abstract_state",
    "check_batch",
    "check_rows",
    "distill",
    "init_state",
    "join",
    "learning_rates",
    "make_learner",
    "make_model",
    "make_optimizer",
    "make_update",
    "stored_part",
    "stored_student",
    "student_params",
    "student_rollout",
]
