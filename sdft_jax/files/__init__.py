"""Files: bounded reading of those that others wrote, and atomic writing of our own."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.files.reading import (
        file_size,
        is_regular,
        parse_json,
        read_bytes,
        read_json,
        read_json_lines,
        read_record,
    )
    from sdft_jax.files.writing import cache_directory, open_replacement, write_errors, write_text

__all__ = [
    "cache_directory",
    "file_size",
    "is_regular",
    "open_replacement",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_record",
    "write_errors",
    "write_text",
]
