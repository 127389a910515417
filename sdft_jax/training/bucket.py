"""Copies between a local directory and a bucket.

A bucket does not support appending to a file or renaming a directory, which logs and exports need. A run with
a bucket as its output therefore writes everything except its checkpoints to a local directory. This directory
is copied to the bucket at each checkpoint and at the end, and back if the run resumes on another machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from sdft_jax.files.writing import TEMPORARY
from sdft_jax.training.lock import LOCK


def is_remote(output: str) -> bool:
    """Return True for a bucket, such as gs://BUCKET/runs/NAME."""
    return "://" in output


def download(remote: str, local: Path, exclude: str) -> None:
    """Copy every file that `local` does not have yet, except the top-level entry `exclude`."""
    local.mkdir(parents=True, exist_ok=True)
    for name, file in _files(epath.Path(remote), exclude):
        target = local / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())


def upload(local: Path, remote: str, exclude: str) -> None:
    """Copy every file that is new or has changed since the last upload, except the top-level entry
    `exclude`.
    """
    stamp = local / ".pushed"
    last = stamp.stat().st_mtime_ns if stamp.exists() else 0
    files = [(name, Path(file)) for name, file in _files(epath.Path(local), exclude) if name != stamp.name]
    newest = max((file.stat().st_mtime_ns for _, file in files), default=0)
    for name, file in files:
        if file.stat().st_mtime_ns > last:
            target = epath.Path(remote) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    stamp.touch()
    os.utime(stamp, ns=(newest, newest))


def _files(directory: epath.Path, exclude: str, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Yield (relative name, path) of all files below, except `exclude`, the lock and temporary ones."""
    if not directory.exists():
        return
    for path in sorted(directory.iterdir()):
        name = prefix + path.name
        if name in (exclude, LOCK) or path.name.endswith(TEMPORARY):
            continue
        if path.is_dir():
            yield from _files(path, exclude, f"{name}/")
        else:
            yield name, path
