"""Random access to the lines of a text file, plain or compressed, without its content in memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from sdft_jax.errors import SdftError, reason
from sdft_jax.files.reading import LARGEST, regular_size
from sdft_jax.files.writing import write_errors

_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a compressed file -> the codec's name in pyarrow."""
_CHUNK = 1 << 22
"""Number of bytes that are read at one time."""
_LARGEST = 1 << 40
"""Maximum size of a file, in bytes: all of it is read once, to find its lines."""


class Lines(Sequence[bytes]):
    """The lines of a file as bytes without their newlines, each read on access; 8 bytes of memory per line.

    The content is that of the file when it was opened, even if another file gets its name later. gzip and
    Zstandard, recognized by their first bytes, have no random access: they are decompressed into an unnamed
    file in the directory for temporary files, which the system deletes with this object or the process.
    Blank lines at the end do not count.

    Args:
        file: a regular file on a local disk.
        source: the name of the file in error messages.
        remedy: the end of an error message, such as `download it again`.

    Raises:
        SdftError: the file is larger than 1 TiB or cannot be read, or a compressed one is damaged or
            incomplete.
    """

    def __init__(self, file: str | os.PathLike[str], source: str, remedy: str):
        if (size := regular_size(file, remedy)) > _LARGEST:
            raise SdftError(f"{source} has {size:,} bytes, more than the maximum of {_LARGEST:,}: {remedy}.")
        try:
            self._descriptor = _open(file, source)
            weakref.finalize(self, os.close, self._descriptor)
            self._ends = _line_ends(self._descriptor)
        except OSError as error:
            raise SdftError(f"{source!r} cannot be read ({error.strerror or error}): {remedy}.") from None

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        return [self._line(one) for one in chosen] if isinstance(chosen, range) else self._line(chosen)

    def _line(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) + 1 if index else 0
        size = int(self._ends[index]) - start
        if size > LARGEST:
            raise ValueError(f"it has {size:,} bytes, more than the maximum of {LARGEST:,}")
        line = os.pread(self._descriptor, size, start)
        if len(line) < size:
            raise EOFError("the file has become shorter since it was opened")
        return line


def _open(file: str | os.PathLike[str], source: str) -> int:
    """Return the descriptor of a file, or of its decompressed copy."""
    descriptor = os.open(file, os.O_RDONLY)
    head = os.pread(descriptor, 4, 0)
    codec = next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)
    if codec is None:
        return descriptor
    os.close(descriptor)
    directory = tempfile.gettempdir()
    with (
        write_errors(directory, f"set TMPDIR to a directory with space for the decompressed {source}"),
        tempfile.TemporaryFile(dir=directory) as copy,
    ):
        for chunk in _decompressed(file, codec, source):
            copy.write(chunk)
        copy.flush()
        return os.dup(copy.fileno())


def _decompressed(file: str | os.PathLike[str], codec: str, source: str) -> Iterator[bytes]:
    import pyarrow

    try:
        with pyarrow.input_stream(os.fspath(file), compression=codec) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise SdftError(
            f"{source} is not a complete {codec} file ({reason(error)}): copy or compress it again."
        ) from None


def _line_ends(descriptor: int) -> Int64[np.ndarray, " R"]:
    """Return the position after the last byte of each line."""
    position, parts = 0, []
    while chunk := os.pread(descriptor, _CHUNK, position):
        parts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + position)
        position += len(chunk)
    ends = np.concatenate([*parts, [position]]).astype(np.int64)
    count = len(ends)
    while count:
        start = int(ends[count - 2]) + 1 if count > 1 else 0
        if not _is_blank(descriptor, start, int(ends[count - 1])):
            break
        count -= 1
    return ends[:count].copy()


def _is_blank(descriptor: int, start: int, end: int) -> bool:
    """Return True if there is only whitespace between two positions."""
    return not any(
        os.pread(descriptor, min(_CHUNK, end - first), first).strip() for first in range(start, end, _CHUNK)
    )
