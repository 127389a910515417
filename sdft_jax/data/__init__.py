"""Files to examples to token batches, on the host; no device code."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.data.batches import Buckets, find_buckets, make_batches, pad_batch, padded_width
    from sdft_jax.data.encoding import Dropped, Encoded, encode_all, encode_texts
    from sdft_jax.data.examples import Example
    from sdft_jax.data.sources import make_examples, make_text_examples, read_rows

__all__ = [
    "Buckets",
    "Dropped",
    "Encoded",
    "Example",
    "encode_all",
    "encode_texts",
    "find_buckets",
    "make_batches",
    "make_examples",
    "make_text_examples",
    "pad_batch",
    "padded_width",
    "read_rows",
]
