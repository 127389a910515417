"""The updates behind `train.method`, all of one signature; `methods.py` says what each of them reads."""

from collections.abc import Callable

from sdft_jax.algorithm.baselines.dft import make_dft_update
from sdft_jax.algorithm.baselines.offline import make_offline_kl_update, make_offline_update
from sdft_jax.algorithm.baselines.oracle import make_oracle_update
from sdft_jax.algorithm.baselines.reinvoke import imitation_steps, make_reinvoke_update
from sdft_jax.algorithm.baselines.sft import make_sft_update
from sdft_jax.algorithm.state import Step
from sdft_jax.algorithm.update import make_update

UPDATES: dict[str, Callable[..., Step]] = {
    "sdft": make_update,
    "sft": make_sft_update,
    "dft": make_dft_update,
    "reinvoke": make_reinvoke_update,
    "offline": make_offline_update,
    "offline_kl": make_offline_kl_update,
    "cpt": make_sft_update,
    "joint": make_sft_update,
    "oracle": make_oracle_update,
}

__all__ = [
    "UPDATES",
    "imitation_steps",
    "make_dft_update",
    "make_offline_kl_update",
    "make_offline_update",
    "make_oracle_update",
    "make_reinvoke_update",
    "make_sft_update",
]
