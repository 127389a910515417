"""From files and datasets to token batches, on the host."""

from sdft_jax.data.pipeline import Buckets, find_buckets, make_batches, pad_batch, padded_width
from sdft_jax.data.sources import examples, read_rows, texts

__all__ = [
    "Buckets",
    "examples",
    "find_buckets",
    "make_batches",
    "pad_batch",
    "padded_width",
    "read_rows",
    "texts",
]
