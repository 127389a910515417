"""Digests that name or compare inputs: of a text, of a file, and of a directory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def short_digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a local file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_sha256(path: Path, most: int | None = None) -> str | None:
    """Return the SHA-256 of a file or a directory; None for another path.

    That of a directory is the SHA-256 of what `sha256sum` prints for its files, by their names in it, in
    order of these.

    Args:
        path: the path.
        most: maximum size in bytes; None for a larger file or directory.
    """
    if path.is_file():
        return None if most is not None and path.stat().st_size > most else file_sha256(path)
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if most is not None and sum(file.stat().st_size for file in files) > most:
        return None
    lines = "".join(f"{file_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
