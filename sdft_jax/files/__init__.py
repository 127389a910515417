"""Files: bounded reading of those that others wrote, and atomic writing of our own."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.files.reading import (
        is_regular,
        is_utf8,
        parse_json,
        read_bytes,
        read_json,
        read_json_lines,
        read_record,
        read_text,
        regular_size,
    )
    from sdft_jax.files.writing import open_replacement, write_text

__all__ = [
    "is_regular",
    "is_utf8",
    "open_replacement",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_record",
    "read_text",
    "regular_size",
    "write_text",
]
