"""Files: bounded reading of those that others wrote, and atomic writing of our own."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.files.reading import (
        parse_json,
        parse_sealed,
        read_bytes,
        read_json,
        read_json_lines,
        read_record,
        read_sealed,
    )
    from sdft_jax.files.writing import open_replacement, sealed, write_text

__all__ = [
    "open_replacement",
    "parse_json",
    "parse_sealed",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_record",
    "read_sealed",
    "sealed",
    "write_text",
]
