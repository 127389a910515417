"""Self-Distillation Fine-Tuning in JAX (arXiv 2601.19897).

The names below are imported when they are first used, so that `import sdft_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdft_jax.config import Config, load_config
    from sdft_jax.errors import SdftError
    from sdft_jax.models import Model, load_model, save_pretrained
    from sdft_jax.optimizer import make_optimizer
    from sdft_jax.sampling import generate
    from sdft_jax.sharding import Rules, Sharding, make_mesh
    from sdft_jax.state import init_state
    from sdft_jax.training import train
    from sdft_jax.types import Metrics, Rollout, TokenBatch, TrainState
    from sdft_jax.update import make_update

_HOMES = {
    "config": ("Config", "load_config"),
    "errors": ("SdftError",),
    "models": ("Model", "load_model", "save_pretrained"),
    "optimizer": ("make_optimizer",),
    "sampling": ("generate",),
    "sharding": ("Rules", "Sharding", "make_mesh"),
    "state": ("init_state",),
    "training": ("train",),
    "types": ("Metrics", "Rollout", "TokenBatch", "TrainState"),
    "update": ("make_update",),
}
_MODULE_OF = {name: f"sdft_jax.{module}" for module, names in _HOMES.items() for name in names}

__all__ = [
    "Config",
    "Metrics",
    "Model",
    "Rollout",
    "Rules",
    "SdftError",
    "Sharding",
    "TokenBatch",
    "TrainState",
    "generate",
    "init_state",
    "load_config",
    "load_model",
    "make_mesh",
    "make_optimizer",
    "make_update",
    "save_pretrained",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sdft_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
