"""Completions: the decode loop, the choice of a token, the placement for decoding."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.sampling.decode import cache_sizes, compiled_sample, generate, sample
    from sdft_jax.sampling.keys import make_key, row_keys, sample_keys
    from sdft_jax.sampling.layout import decoding_model, lay_out_for_decoding

__all__ = [
    "cache_sizes",
    "compiled_sample",
    "decoding_model",
    "generate",
    "lay_out_for_decoding",
    "make_key",
    "row_keys",
    "sample",
    "sample_keys",
]
