"""Runs whose output is a bucket: checkpoints go there directly, all else is kept here and copied there.

A bucket cannot append to a file or rename a directory, which logs and exports need. So everything but the
checkpoints is written into a local directory, which is copied to the bucket at every checkpoint and at the
end, and back from it where a run goes on on another machine. With a local output nothing is copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

CHECKPOINTS = "checkpoints"
"""What is not mirrored: Orbax writes it where it belongs."""


def is_remote(output: str) -> bool:
    """Whether an output is a bucket, such as gs://BUCKET/runs/NAME."""
    return "://" in output


def local(output: str) -> Path:
    """The directory here in which a run writes everything but its checkpoints."""
    if not is_remote(output):
        return Path(output)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "sdft_jax" / "mirror" / output.replace("://", "/")


def pull(output: str, resumed: bool) -> None:
    """Bring here what an earlier machine has left in the bucket, and drop what an earlier run has left here.

    Every process calls it; process 0 alone has anything to do.
    """
    if not is_remote(output) or jax.process_index() > 0:
        return
    here = local(output)
    if not resumed:
        shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True, exist_ok=True)
    for name, file in _files(epath.Path(output)):
        target = here / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())


def push(output: str) -> None:
    """Copy to the bucket what is new or has changed here since the last time."""
    if not is_remote(output) or jax.process_index() > 0:
        return
    there, here = epath.Path(output), local(output)
    stamp = here / ".pushed"
    last = stamp.stat().st_mtime_ns if stamp.exists() else 0
    files = [(name, file) for name, file in _files(epath.Path(here)) if name != stamp.name]
    newest = max((Path(file).stat().st_mtime_ns for _, file in files), default=0)
    for name, file in files:
        if Path(file).stat().st_mtime_ns > last:
            target = there / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(file).read_bytes())
    stamp.touch()
    os.utime(stamp, ns=(newest, newest))


def _files(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """(relative name, path) of all files below, without checkpoints and what is under way."""
    if not directory.exists():
        return
    for path in sorted(directory.iterdir()):
        name = prefix + path.name
        if name == CHECKPOINTS or path.name.endswith(".tmp"):
            continue
        if path.is_dir():
            yield from _files(path, f"{name}/")
        else:
            yield name, path
