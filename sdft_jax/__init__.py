"""Self-Distillation Fine-Tuning in JAX (arXiv 2601.19897).

A name is imported when it is first used, so that `import sdft_jax` costs nothing.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.algorithm.optimizer import make_optimizer
    from sdft_jax.algorithm.state import init_state
    from sdft_jax.algorithm.update import make_update
    from sdft_jax.config import Config, load_config
    from sdft_jax.errors import SdftError
    from sdft_jax.models import Model, load_model, save_pretrained
    from sdft_jax.sampling import generate
    from sdft_jax.sharding import Rules, Sharding, make_mesh
    from sdft_jax.training import train
    from sdft_jax.types import Metrics, Rollout, TokenBatch, TrainState

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
