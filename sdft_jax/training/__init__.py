"""A run on one host or many: loop, inputs, checkpoints, run directory, preemption and export."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.training.inputs import Prepared, prepare
    from sdft_jax.training.loop import Interrupted, Run, Watch, total_steps, train

__all__ = [
    "Interrupted",
    "Prepared",
    "Run",
    "Watch",
    "prepare",
    "total_steps",
    "train",
]
