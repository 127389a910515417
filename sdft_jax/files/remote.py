"""Local copies of files and directories in a bucket, for readers with random access."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from sdft_jax.errors import SdftError, reason
from sdft_jax.files.hashing import short_digest
from sdft_jax.files.writing import cache_directory, write_errors

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub"}
"""Scheme of a bucket -> the package that reads it through fsspec."""


def local_copy(url: str) -> Path | None:
    """Return the path of a local copy of a file or directory in a bucket; None if it does not exist.

    The copy is in `data/` of this library's cache directory. Later runs on this machine use it, until a file
    in the bucket changes.

    Raises:
        SdftError: the bucket cannot be read, or the copy cannot be written.
    """
    try:
        system, root, files = _find(url)
    except Exception as error:  # each kind of bucket has its own
        raise _unreadable(url, error) from error
    if not files:
        return None
    state = short_digest(repr(sorted((name, str(info)) for name, info in files.items())))
    place = cache_directory() / "data" / short_digest(repr(url)) / state
    with write_errors(place, f"set XDG_CACHE_HOME to a directory with space for a copy of {url}"):
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
                copy = Path(temporary, "copy")
                _download(url, system, {name: copy / _relative(name, root, url) for name in files})
                _rename(copy, place)
    return place / PurePosixPath(root).name


def _find(url: str) -> tuple[Any, str, dict[str, Any]]:
    """Return the file system of an address, the path in it, and name -> description of the files there."""
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    return system, root, system.find(root, detail=True)


def _relative(name: str, root: str, url: str) -> PurePosixPath:
    """Return the path of a file below the copy: that below the parent of the path that was given."""
    path = PurePosixPath(name).relative_to(PurePosixPath(root).parent)
    if ".." in path.parts:
        raise SdftError(f"{url}: the name {name!r} leads out of the directory: rename that file.")
    return path


def _download(url: str, system: Any, targets: dict[str, Path]) -> None:
    for target in targets.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        system.get(list(targets), [str(target) for target in targets.values()])
    except Exception as error:
        raise _unreadable(url, error) from error


def _rename(copy: Path, place: Path) -> None:
    """Give a complete copy its name, unless another process has been faster."""
    try:
        os.rename(copy, place)
    except OSError:
        if not place.exists():
            raise


def _unreadable(url: str, error: Exception) -> SdftError:
    package = _PACKAGES.get(url.partition("://")[0])
    remedy = f"the connection, and that {package} is installed" if package else "and the connection"
    return SdftError(
        f"{url} cannot be copied to the local disk ({reason(error)}): check the address, your credentials, "
        f"{remedy}, or copy it yourself and give the local path."
    )
