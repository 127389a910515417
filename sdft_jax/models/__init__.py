"""The decoder as pure functions of a parameter tree, and the tables of the supported model families."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.models.architecture import Architecture, architecture_from_dict, read_architecture
    from sdft_jax.models.cache import Cache, grow
    from sdft_jax.models.decoder import REMAT_POLICIES, Model
    from sdft_jax.models.families import FAMILIES
    from sdft_jax.models.hf.hub import model_directory
    from sdft_jax.models.hf.reading import distance, load_model, open_checkpoint
    from sdft_jax.models.hf.tokenizer import load_tokenizer, read_eos_ids
    from sdft_jax.models.hf.writing import save_pretrained

__all__ = [
    "FAMILIES",
    "REMAT_POLICIES",
    "Architecture",
    "Cache",
    "Model",
    "architecture_from_dict",
    "distance",
    "grow",
    "load_model",
    "load_tokenizer",
    "model_directory",
    "open_checkpoint",
    "read_architecture",
    "read_eos_ids",
    "save_pretrained",
]
