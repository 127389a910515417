"""A run on one host or many: loop, inputs, checkpoints, run directory, preemption and export."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.training.inputs import Inputs, load_inputs
    from sdft_jax.training.loop import Run, Watch, total_steps, train

__all__ = [
    "Inputs",
    "Run",
    "Watch",
    "load_inputs",
    "total_steps",
    "train",
]
