"""Files: bounded reading of those that others wrote, chat templates included; atomic writing of our own."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.files.lines import Lines
    from sdft_jax.files.reading import (
        file_size,
        is_regular,
        is_utf8,
        parse_json,
        parse_sealed,
        read_bytes,
        read_json,
        read_json_lines,
        read_record,
        read_text,
        regular_size,
    )
    from sdft_jax.files.remote import local_copy
    from sdft_jax.files.rendering import RenderError, render, start_renderer
    from sdft_jax.files.templates import read_template
    from sdft_jax.files.writing import (
        cache_directory,
        json_line,
        open_replacement,
        refuse_source,
        sealed,
        write_errors,
        write_text,
    )

__all__ = [
    "Lines",
    "RenderError",
    "cache_directory",
    "file_size",
    "is_regular",
    "is_utf8",
    "json_line",
    "local_copy",
    "open_replacement",
    "parse_json",
    "parse_sealed",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_record",
    "read_template",
    "read_text",
    "refuse_source",
    "regular_size",
    "render",
    "sealed",
    "start_renderer",
    "write_errors",
    "write_text",
]
