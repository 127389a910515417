"""Bounded reading of files that others wrote: every fault is one sentence with the file and the remedy.

A file may be a directory or a named pipe, larger than memory, not UTF-8, or JSON that is nested more deeply
than Python's stack.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sdft_jax.errors import SdftError, reason

LARGEST = 1 << 28
"""Maximum size of a file that is read as a whole, in bytes."""
DEEPEST = 100
"""Maximum depth of nested values: Python's stack must also hold what works on them."""


def read_bytes(path: str | os.PathLike[str], remedy: str, limit: int = LARGEST) -> bytes:
    """Return the content of a regular file, or of an object in a bucket.

    Args:
        path: the file.
        remedy: the end of an error message, such as `download it again`.
        limit: the maximum size, in bytes.

    Raises:
        SdftError: the file is missing, not a regular file, larger than `limit`, or cannot be read.
    """
    try:
        in_bucket = "://" in os.fspath(path)
        file: Any = epath.Path(path) if in_bucket else Path(path)
        size = file.stat().length if in_bucket else regular_size(path, remedy)
        if size > limit:
            raise SdftError(
                f"{os.fspath(path)} has {size:,} bytes, more than the maximum of {limit:,}: {remedy}."
            )
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, remedy) from None


def read_text(path: str | os.PathLike[str], remedy: str, limit: int = LARGEST) -> str:
    """Return the content of a file in UTF-8, with or without a byte-order mark. Raises as `read_bytes`."""
    try:
        return read_bytes(path, remedy, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SdftError(f"{os.fspath(path)}: byte {error.start} is not UTF-8: {remedy}.") from None


def is_utf8(text: str) -> bool:
    """Return True if UTF-8 can encode a text: no half of a surrogate pair, as in arguments of other bytes."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def regular_size(path: str | os.PathLike[str], remedy: str) -> int:
    """Return the size of a regular file on a local disk. Opening another file, such as a pipe, may wait.

    Raises:
        SdftError: the file is missing, not a regular file, or out of reach.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, remedy) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise SdftError(f"{os.fspath(path)} is {kind}: {remedy}.")
    return status.st_size


def _unreadable(path: str | os.PathLike[str], error: Exception, remedy: str) -> SdftError:
    """Return the exception for a file that cannot be read; a NUL byte in its path is a ValueError."""
    if isinstance(error, FileNotFoundError):
        return SdftError(f"{os.fspath(path)} does not exist: {remedy}.")
    problem = getattr(error, "strerror", None) or reason(error)
    return SdftError(f"{os.fspath(path)!r} cannot be read ({problem}): {remedy}.")


def parse_json(text: bytes, place: str, remedy: str) -> Any:
    """Return the value of a JSON text in UTF-8, with or without a byte-order mark.

    Args:
        text: the bytes.
        place: the file, or the file and its line, for error messages.
        remedy: the end of an error message.

    Raises:
        SdftError: the text is empty, not UTF-8, not JSON, nested too deeply, or contains a lone surrogate,
            which is not a character.
    """
    try:
        value = json.loads(text.decode("utf-8-sig"))
        if text.count(b"[") + text.count(b"{") > DEEPEST and _is_deeper(value, DEEPEST):
            raise RecursionError
        if b"\\u" in text and not is_utf8(json.dumps(value, ensure_ascii=False)):
            raise ValueError("it contains half of a surrogate pair, which is not a character")
        return value
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8"
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error) if text.strip() else "it is empty"
    raise SdftError(f"{place} is not valid JSON ({problem}): {remedy}.")


def _is_deeper(value: Any, depth: int) -> bool:
    """Return True if lists and objects are nested more than `depth` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (depth == 0 or any(_is_deeper(one, depth - 1) for one in inner))


def read_json(path: str | os.PathLike[str], remedy: str, kind: type = dict, limit: int = LARGEST) -> Any:
    """Return the JSON value of a file.

    Args:
        path: the file.
        remedy: the end of an error message, such as `download it again`.
        kind: the required type of the value.
        limit: the maximum size of the file, in bytes.

    Raises:
        SdftError: as in `read_bytes` and `parse_json`, or the value is not of that type.
    """
    value = parse_json(read_bytes(path, remedy, limit), os.fspath(path), remedy)
    if not isinstance(value, kind):
        raise SdftError(
            f"{os.fspath(path)} holds a JSON {type(value).__name__} instead of a {kind.__name__}: {remedy}."
        )
    return value


def is_regular(path: epath.Path) -> bool:
    """Return True for a regular file or an object in a bucket; epath's `is_file` accepts named pipes too."""
    return path.is_file() if "://" in os.fspath(path) else os.path.isfile(path)


def file_size(path: epath.Path) -> int:
    """Return the size of a file or an object in a bucket, in bytes.

    epath's `stat` also looks up the owner's name, and fails if the system has none for the number, as in many
    containers and on shared disks.
    """
    return path.stat().length if "://" in os.fspath(path) else os.stat(path).st_size


def read_record(path: epath.Path) -> dict[str, Any]:
    """Return the JSON object in a file, which may be in a bucket; {} if it is missing or damaged."""
    try:
        return read_json(path, "")
    except SdftError:
        return {}


def parse_sealed(text: bytes) -> dict[str, Any]:
    """Return the object that `sealed` protects, from a JSON text; {} if it is damaged."""
    try:
        record = parse_json(text, "record", "")
    except SdftError:
        return {}
    return _unsealed(record) if isinstance(record, dict) else {}


def _unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    text = record.get("record")
    if not isinstance(text, str) or zlib.crc32(text.encode()) != record.get("crc32"):
        return {}
    return json.loads(text)


def read_json_lines(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """Return (rows, damaged): the lines of our own log that are JSON objects, and the number of all others.

    A last line without its newline, which a kill may leave, does not count as damaged.
    """
    *lines, last = read_bytes(path, "remove it", limit=1 << 32).split(b"\n")
    rows, damaged = [], 0
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        try:
            row = parse_json(line, os.fspath(path), "")
        except SdftError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number <= len(lines):
            damaged += 1
    return rows, damaged
