"""Atomic writing: after a crash at any moment, a file is complete, or as it was before."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from etils import epath

from sdft_jax.errors import SdftError

TEMPORARY = ".tmp"
"""Suffix of the hidden files that are being written."""


def cache_directory() -> Path:
    """Return the directory of this library's caches: $XDG_CACHE_HOME/sdft_jax, or else ~/.cache/sdft_jax.

    Raises:
        SdftError: the user has no home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdft_jax"
    except RuntimeError:  # a user without an entry in the system's list, as in many containers
        raise SdftError("this user has no home directory: set XDG_CACHE_HOME to a directory.") from None


@contextlib.contextmanager
def open_replacement(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a hidden file beside `path`; it gets the name `path` if the context ends without an exception.

    The file stays open for writing, so that a log may be replaced and then extended. Its name is not
    predictable and it is never opened through a link. If `path` is a link, the link is replaced and its
    target stays as it is. Text is UTF-8.

    Args:
        path: the file to replace; need not exist.
        mode: `w` for text, `wb` for bytes; with `+`, the file may also be read.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    access = os.O_RDWR if "+" in mode else os.O_WRONLY
    flags = access | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    encoding = None if "b" in mode else "utf-8"
    file = os.fdopen(os.open(temporary, flags, 0o666), mode, encoding=encoding)
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def write_errors(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Raise SdftError, which names `path`, for an error of the system inside the block.

    Args:
        path: the file or directory that is written.
        remedy: the end of the message, such as `give another file`.
    """
    try:
        yield
    except OSError as error:
        raise SdftError(
            f"{os.fspath(path)} cannot be written ({error.strerror or error}): {remedy}."
        ) from error


def json_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON, as `read_json_lines` reads it."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def refuse_source(target: str | os.PathLike[str], sources: Iterable[str], remedy: str) -> None:
    """Raise SdftError if writing a file would replace one of the rows that are read.

    Args:
        target: the file to write.
        sources: the paths of files or directories that are read; other sources are ignored.
        remedy: the end of the message, such as `give another directory`.
    """
    file = Path(target).resolve()
    for source in sources:
        read = Path(source).resolve()
        if file.exists() and (file == read or (file.parent == read and file.is_file())):
            raise SdftError(f"{target} would replace the rows that are read from {source}: {remedy}.")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, which may be in a bucket, atomically and in UTF-8."""
    if "://" in os.fspath(path):  # a bucket writes an object atomically
        epath.Path(path).write_text(text, encoding="utf-8")
        return
    with open_replacement(path) as file:
        file.write(text)
    file.close()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object that holds `value` as text, with the text's CRC-32; `parse_sealed` verifies it."""
    text = json.dumps(dict(value))
    return {"crc32": zlib.crc32(text.encode()), "record": text}
