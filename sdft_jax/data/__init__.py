"""Rows of data sources, encoded as tokens and padded to batches; pure host code without device arrays."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.data.batches import Buckets, HostSlice, find_buckets, make_batches, pad_batch, padded_width
    from sdft_jax.data.encoding import (
        Dropped,
        Encoded,
        PromptFormat,
        encode,
        encode_all,
        encode_texts,
        make_format,
    )
    from sdft_jax.data.examples import Example
    from sdft_jax.data.indexed import Indexed
    from sdft_jax.data.lazy_rows import LazyRows
    from sdft_jax.data.sources import (
        index_examples,
        index_text_examples,
        load_examples,
        make_examples,
        make_text_examples,
        read_rows,
    )

__all__ = [
    "Buckets",
    "Dropped",
    "Encoded",
    "Example",
    "HostSlice",
    "Indexed",
    "LazyRows",
    "PromptFormat",
    "encode",
    "encode_all",
    "encode_texts",
    "find_buckets",
    "index_examples",
    "index_text_examples",
    "load_examples",
    "make_batches",
    "make_examples",
    "make_format",
    "make_text_examples",
    "pad_batch",
    "padded_width",
    "read_rows",
]
