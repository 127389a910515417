"""Decoder models: Hugging Face checkpoints in and out, and pure functions of a parameter tree."""

from sdft_jax.models.cache import KVCache, grow
from sdft_jax.models.config import ModelConfig, config_from_dict, read_config
from sdft_jax.models.decoder import REMAT_POLICIES, Model, layer_by_layer
from sdft_jax.models.families import FAMILIES
from sdft_jax.models.reading import distance, load_model, open_checkpoint
from sdft_jax.models.writing import save_pretrained

__all__ = [
    "FAMILIES",
    "REMAT_POLICIES",
    "KVCache",
    "Model",
    "ModelConfig",
    "config_from_dict",
    "distance",
    "grow",
    "layer_by_layer",
    "load_model",
    "open_checkpoint",
    "read_config",
    "save_pretrained",
]
