"""Methods to compare with, each an update of the same signature as SDFT's; `train.method` chooses."""

from sdft_jax.baselines.sft import make_sft_update
from sdft_jax.update import make_update

METHODS = {"sdft": make_update, "sft": make_sft_update}

__all__ = ["METHODS", "make_sft_update"]
