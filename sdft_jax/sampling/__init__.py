"""Completions: the decode loop, the choice of a token, the layout for decoding."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.sampling.decode import compiled_sample, generate, row_keys, sample
    from sdft_jax.sampling.layout import decoding_model, lay_out_for_decoding

__all__ = [
    "compiled_sample",
    "decoding_model",
    "generate",
    "lay_out_for_decoding",
    "row_keys",
    "sample",
]
